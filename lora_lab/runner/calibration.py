"""`plan --calibrate`: times real steps and batches of a study on this device, and says what the whole will take."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from lora_lab.analysis.wording import plural
from lora_lab.common.activity import Activity, Interrupted
from lora_lab.common.errors import InputError
from lora_lab.planning.answer_checks import with_classes
from lora_lab.planning.calibration import Seconds, calibration, total
from lora_lab.planning.trainings import count_trainings
from lora_lab.runner.in_process import load_workbench
from lora_lab.runner.pack_size import STEPS_PER_SIZE, WARM_UP_STEPS, PackSize
from lora_lab.study.engines import engine_for
from lora_lab.training.base.loading import architecture
from lora_lab.training.schedule import BatchPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.data.tokens import TokenizedDataset
    from lora_lab.planning.calibration import Calibration
    from lora_lab.runner.in_process import Workbench
    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.training.datasets import TokenizedSplits
    from lora_lab.training.engine import Engine

LONG = 1_000_000
"""Optimizer steps of trials whose steps are timed: they are not to come to an evaluation."""
MOST_BATCHES = 30
MOST_S = 20.0
"""An evaluation is timed for so many batches or seconds."""


class _Timer:
    """A `Beat` that times the batches of evaluations, and interrupts each after enough of them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.samples: list[float] = []
        self._began: tuple[str, float] | None = None

    def __call__(self, activity: Activity) -> None:
        if not activity.what.startswith("evaluation"):
            return
        now = self.clock()
        if self._began is not None:
            what, since = self._began
            self.samples.append(now - since)
            if what != activity.what:
                raise Interrupted
        self._began = (activity.what, now)
        if len(self.samples) >= MOST_BATCHES or sum(self.samples) > MOST_S:
            raise Interrupted

    def take(self) -> list[float]:
        """The batches that were timed, in the order in which an evaluation has them; the next ones count anew.

        Of an evaluation that is a single batch, what followed it is counted in.
        """
        if not self.samples and self._began is not None:
            self.samples.append(self.clock() - self._began[1])
        samples, self.samples, self._began = self.samples, [], None
        return samples


def calibrate(
    spec: StudySpec,
    *,
    progress: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Time some steps of a study on this device, and count up what the whole study will take.

    Trials that stand for the study's train side by side as they would in it, on its own base and data; nothing is kept.
    Configurations with another base, or another engine, than most of the study's are taken to be as fast as those.

    Args:
        spec: The study.
        progress: Told what is being timed.
        clock: The time in seconds.

    Raises:
        InputError: the base or the data cannot be used, or no trial fits into memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        spec = with_classes(spec, Path(folder))
    linears = cache(architecture)
    trainings = count_trainings(spec, lambda config: linears(config.model))
    kinds = Counter((config.model, engine_for(config).name) for config in trainings.examples)
    model, engine_name = kinds.most_common(1)[0][0]
    chosen = [one for one in trainings.examples if (one.model, engine_for(one).name) == (model, engine_name)]
    with tempfile.TemporaryDirectory() as folder:
        timer, began = _Timer(clock), clock()
        progress(f"loading {model.model_name_or_path}")
        bench = load_workbench(model, Path(folder) / "trials", Path(folder) / "data", timer)
        bench.catalog.splits(chosen[0].data)
        loading = Seconds(clock() - began)
        engine: Engine = bench.engines[0] if engine_name == "packed" else bench.reference
        size = PackSize(spec.sweep.fixed_pack_size if engine_name == "packed" else 1)
        timing = _Timing(bench, engine, size, timer, progress)
        return timing.whole(chosen, trainings.examples, trainings.all, loading)


class _Timing:
    """Times one engine on one base.

    Args:
        bench: The base.
        engine: The one of its engines that trains.
        size: How many trials train at once.
        timer: The engine's `Beat`.
        progress: Told what is being timed.
    """

    def __init__(
        self,
        bench: Workbench,
        engine: Engine,
        size: PackSize,
        timer: _Timer,
        progress: Callable[[str], None],
    ) -> None:
        self._bench, self._engine, self._size = bench, engine, size
        self._timer, self._clock, self._progress = timer, timer.clock, progress
        self._admissions: list[float] = []
        self._number = 0
        self._speed = 0.0

    def whole(
        self, chosen: Sequence[TrialConfig], examples: Sequence[TrialConfig], trainings: int, loading: Seconds
    ) -> Calibration:
        """The calibration of so many trainings of `examples`, from timing some of `chosen`."""
        step = self._step(chosen, trainings)
        pack_size = len(self._engine.active)
        evaluated = self._evaluated(chosen, pack_size)
        bare = self._bare(chosen[0])
        share = trainings / len(examples)
        calls = share * sum(self._steps_of(config) for config in examples) / pack_size
        evaluation = [evaluated.times(share * sum(self._evaluated_tokens(config) for config in examples))]
        base = bare.times(self._padded(chosen[0], self._splits(chosen[0]).eval))
        splits = self._splits(chosen[0])
        for at_the_end in (splits.test, splits.forgetting):
            tokens = 0.0 if at_the_end is None else self._padded(chosen[0], at_the_end)
            evaluation.append(bare.times(tokens * trainings))
            base += bare.times(tokens)
        admissions = Seconds.of(self._admissions).times(trainings)
        return calibration(
            step.times(calls),
            total(evaluation),
            total((loading, base, admissions)),
            pack_size=pack_size,
            tokens_per_second=self._speed,
        )

    # Steps

    def _step(self, configs: Sequence[TrialConfig], trainings: int) -> Seconds:
        """One step of a pack as large as the study's would be."""
        speeds: list[float] = []
        samples: list[float] = []
        while True:
            wanted = min(self._size.limit, trainings)
            if len(self._engine.active) > wanted:
                self._clear()
            if len(self._engine.active) < wanted:
                samples, speeds = [], []
                self._fill(configs, wanted)
            active = len(self._engine.active)
            self._progress(f"steps of {plural(active, 'trial')} side by side")
            began = self._clock()
            self._engine.step()
            samples.append(self._clock() - began)
            speeds.append(self._engine.tokens_per_second)
            self._size.measured(active, speeds[-1])
            is_last_size = self._size.settled or active == trainings
            if is_last_size and active == min(self._size.limit, trainings) and len(samples) >= STEPS_PER_SIZE:
                self._speed = fmean(speeds[WARM_UP_STEPS:])
                return Seconds.of(samples[WARM_UP_STEPS:])

    def _fill(self, configs: Sequence[TrialConfig], wanted: int, **training: int) -> None:
        """Admit trials, evenly from all of `configs`, until there are enough or there is no room for more."""
        spread = [configs[index * len(configs) // wanted] for index in range(wanted)]
        for config in spread[len(self._engine.active) :]:
            changed = config.changed(training={"max_steps": LONG, "eval_steps": LONG} | training)
            began = self._clock()
            ending = self._engine.admit(self._number, changed)
            self._admissions.append(self._clock() - began)
            self._number += 1
            if ending is not None:
                raise InputError(f"a trial of this study {ending.reason}")
            set_aside = [] if self._bench.packed is None else self._bench.packed.set_aside
            if set_aside:
                self._size.shrink(len(self._engine.active))
                set_aside.clear()
                return

    def _clear(self) -> None:
        for number in self._engine.active:
            self._engine.discard(number)

    def _steps_of(self, config: TrialConfig) -> int:
        """Calls of `Engine.step` that a training takes: micro-batches, or optimizer steps of the reference engine."""
        plan = BatchPlan(len(self._splits(config).train), config.training)
        if self._engine is self._bench.reference:
            return plan.total_steps
        return sum(len(plan.micro_batches(step)) for step in range(plan.total_steps))

    # Evaluations

    def _evaluated(self, configs: Sequence[TrialConfig], pack_size: int) -> Seconds:
        """An evaluation, by trial and token, of a pack that comes to one together."""
        self._progress(f"an evaluation of {plural(pack_size, 'trial')}")
        self._clear()
        first = configs[0]
        alike = [
            config
            for config in configs
            if (config.data, config.training.per_device_eval_batch_size, config.training.gradient_accumulation_steps)
            == (first.data, first.training.per_device_eval_batch_size, first.training.gradient_accumulation_steps)
        ]
        self._fill(alike, pack_size, max_steps=1)
        count = len(self._engine.active)
        samples: list[float] = []
        while not samples:
            self._engine.step()
            samples = self._timer.take()
        self._clear()
        tokens = self._batch_tokens(first, self._splits(first).eval)
        return _per_token(samples, [count * one for one in tokens])

    def _bare(self, config: TrialConfig) -> Seconds:
        """The bare base's evaluation, by token."""
        self._progress("an evaluation of the bare base")
        with suppress(Interrupted):
            self._bench.engines[0].base_losses(config)
        samples = self._timer.take()
        splits = self._splits(config)
        tokens = self._batch_tokens(config, splits.eval)
        if splits.forgetting is not None:
            tokens += self._batch_tokens(config, splits.forgetting)
        return _per_token(samples, tokens)

    def _evaluated_tokens(self, config: TrialConfig) -> float:
        """Tokens of all evaluations of a training."""
        plan = BatchPlan(len(self._splits(config).train), config.training)
        evaluations = sum(plan.evaluation(step) is not None for step in range(1, plan.total_steps + 1))
        return evaluations * self._padded(config, self._splits(config).eval)

    def _padded(self, config: TrialConfig, tokens: TokenizedDataset) -> float:
        return sum(self._batch_tokens(config, tokens))

    def _batch_tokens(self, config: TrialConfig, tokens: TokenizedDataset) -> list[float]:
        """The padded tokens of each batch of an evaluation: rows come by length, the longest first."""
        rows = config.training.per_device_eval_batch_size
        lengths = sorted((len(ids) for ids in tokens.input_ids), reverse=True)
        return [float(lengths[start] * len(lengths[start : start + rows])) for start in range(0, len(lengths), rows)]

    def _splits(self, config: TrialConfig) -> TokenizedSplits:
        return self._bench.catalog.splits(config.data)


def _per_token(samples: Sequence[float], tokens: Sequence[float]) -> Seconds:
    """The duration of a token, from the leading batches of an evaluation."""
    known = min(len(samples), len(tokens))
    return Seconds.per_unit(samples[:known], tokens[:known])
