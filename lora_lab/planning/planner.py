"""What a study will cost, before it costs anything: no weights, no data and no GPU are needed."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from lora_lab.analysis.audit import audit
from lora_lab.analysis.wording import setting_text, targets_text, value_text
from lora_lab.common.errors import StorageError
from lora_lab.planning.devices import Device
from lora_lab.planning.example_count import evaluation_examples, training_examples, unseen_examples, why_uncounted
from lora_lab.planning.plan import Adapter, EngineUse, Generation, Memory, Plan, Remedy, Work
from lora_lab.planning.row_checks import base_notes
from lora_lab.planning.target_checks import expert_notes
from lora_lab.planning.trainings import MOST_VARIANTS, configurations, count_trainings
from lora_lab.results.storage import storage_url
from lora_lab.search.store import open_store
from lora_lab.study.engines import engine_for
from lora_lab.study.section import Trait
from lora_lab.study.space import deciding
from lora_lab.study.targets import placement, trainable_parameters
from lora_lab.study.trajectory import trajectory_note
from lora_lab.study.trial_settings import settings_with, value_of
from lora_lab.training.base.loading import default_device, device_name, model_config
from lora_lab.training.device import device_bytes
from lora_lab.training.memory.predictor import CONTEXT_BYTES, MemoryPredictor
from lora_lab.training.memory.room import DEFAULT_LIMIT, MemoryLimit, at_once
from lora_lab.training.schedule import BatchPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lora_lab.planning.trainings import Trainings
    from lora_lab.results.folder import RunFolder
    from lora_lab.study.engines import EngineChoice
    from lora_lab.study.settings import ModelSettings, TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Condition
    from lora_lab.study.targets import LinearMap
    from lora_lab.training.memory.predictor import MemoryPrediction

MEMORY_COLUMNS = (
    *("quantization", "double_quant", "r", "target_modules", "target_parameters", "layers"),
    *("per_device_train_batch_size", "max_length"),
)
"""The settings that `Memory` has fields for."""
ANY_RANK = {"r": 2, "lora_alpha": None}
"""Changes to the LoRA settings that leave alone everything but the rank; every initialization takes rank 2."""
QUANTIZED = {"quantization": "nf4"}
REMEDIED = 3
"""So many of the configurations that do not fit are tried with what could make them fit."""


def local_device() -> Device:
    """The device that `sweep` would train on here."""
    device = default_device()
    memory = device_bytes(device)
    return Device(device_name(), None if memory is None else memory[1], is_cuda=memory is not None)


def make_plan(
    spec: StudySpec,
    folder: RunFolder,
    *,
    device: Device | None = None,
    limit: MemoryLimit = DEFAULT_LIMIT,
    progress: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Work out what a study will do, and what it needs on a device.

    Args:
        spec: The study.
        folder: Where its earlier trials are, if any: they tell the speed.
        device: By default the one that is here.
        limit: What the base and a pack may take.
        progress: Told what is being worked out.

    Raises:
        InputError: the model or a target does not exist.
    """
    planner = _Planner(spec, folder, device or local_device(), limit, progress)
    return planner.plan()


class _Planner:
    def __init__(
        self,
        spec: StudySpec,
        folder: RunFolder,
        device: Device,
        limit: MemoryLimit,
        progress: Callable[[str], None],
    ) -> None:
        self._spec, self._folder, self._device, self._progress = spec, folder, device, progress
        free = None if device.total_bytes is None else device.total_bytes - CONTEXT_BYTES
        of_one_device = limit.bytes_of(free)
        is_split = limit.is_default and spec.model.device_map is not None
        self._limit = None if is_split else of_one_device
        self._config = model_config(spec.model)
        self._predictors: dict[ModelSettings, MemoryPredictor] = {}
        self._linears = self._predictor(spec.model).linears

    def _predictor(self, model: ModelSettings) -> MemoryPredictor:
        if model not in self._predictors:
            self._predictors[model] = MemoryPredictor(
                self._config,
                model,
                "cuda" if self._device.is_cuda else "cpu",
                fused_attention=self._device.fused_attention,
            )
        return self._predictors[model]

    def plan(self) -> Plan:
        spec, sweep = self._spec, self._spec.sweep
        notes = [*expert_notes(spec, self._linears), *base_notes(spec, self._linears)]
        shapes = list(_first(dict.fromkeys(configurations(spec, deciding(spec, settings_with(Trait.MEMORY))))))
        trainings = count_trainings(spec, lambda _: self._linears)
        memory = self._memory(shapes)
        return Plan(
            study_name=spec.study_name,
            question=spec.question,
            model=spec.model.model_name_or_path,
            base_parameters=self._linears.total_parameters,
            device=self._device.name,
            device_bytes=self._device.total_bytes,
            limit_bytes=self._limit,
            sampler=sweep.sampler,
            pruner=sweep.pruner,
            configurations=trainings.configurations,
            is_exact=trainings.is_exact,
            duplicates=trainings.duplicates,
            shared=trainings.shared,
            trained=trainings.trained,
            retrainings=trainings.retrainings,
            space={name: _space_text(spec, name) for name in sweep.parameters},
            trajectory=trajectory_note(spec),
            pack_size=str(sweep.pack_size),
            packs=self._packs(trainings.all, memory),
            engines=self._engines(shapes),
            adapters=_adapters(shapes, self._linears),
            memory=memory,
            work=self._work(trainings),
            notes=(*notes, *(note.sentence for note in audit(spec))),
            generation=self._generation(trainings)
            if spec.evaluation.metrics_of("answers", spec.model.task_type)
            else None,
        )

    def _engine(self, config: TrialConfig) -> EngineChoice:
        return engine_for(config, is_cuda=self._device.is_cuda)

    def _engines(self, shapes: Sequence[TrialConfig]) -> tuple[EngineUse, ...]:
        counts = Counter(self._engine(config) for config in shapes)
        return tuple(EngineUse(choice.name, choice.reason, count) for choice, count in counts.items())

    # Memory

    def _memory(self, shapes: Sequence[TrialConfig]) -> tuple[Memory, ...]:
        families: dict[TrialConfig, list[TrialConfig]] = {}
        for config in shapes:
            families.setdefault(config.changed(lora=ANY_RANK), []).append(config)
        predicted: dict[TrialConfig, MemoryPrediction | None] = {}
        for done, family in enumerate(families.values()):
            self._progress(f"memory: {done} of {len(families)} kinds of trials")
            ranked = sorted(family, key=lambda config: config.lora.r)
            for config in (ranked[0], ranked[-1], *ranked[1:-1]):  # those between are then interpolated
                predicted[config] = self._predict(config)
        rows = [self._row(config, predicted[config]) for config in shapes]
        self._progress("what would make it fit")
        worst = sorted((index for index, row in enumerate(rows) if row.fits is False), key=lambda i: -_size(rows[i]))
        for index in worst[:REMEDIED]:
            rows[index] = self._row(shapes[index], predicted[shapes[index]], self._remedies(shapes[index]))
        return tuple(rows)

    def _predict(self, config: TrialConfig) -> MemoryPrediction | None:
        """Memory of a configuration; None for the reference engine, whose step is PEFT's and the Trainer's."""
        if self._engine(config).name == "reference":
            return None
        return self._predictor(config.model).predict(config)

    def _row(
        self, config: TrialConfig, predicted: MemoryPrediction | None, remedies: tuple[Remedy, ...] = ()
    ) -> Memory:
        return Memory(
            quantization=config.model.quantization + ("+double" if config.model.double_quant else ""),
            r=config.lora.r,
            target_modules=targets_text(config.lora),
            layers=value_text(config.lora.layers),
            rows=config.training.per_device_train_batch_size,
            max_length=config.data.max_length,
            other=_other(self._spec, config),
            engine=self._engine(config).name,
            predicted_bytes=None if predicted is None else predicted.total,
            terms=None if predicted is None else asdict(predicted),
            fits=None if predicted is None or self._limit is None else predicted.allocated <= self._limit,
            at_once=None
            if predicted is None or self._limit is None
            else at_once(predicted, config.data.max_length, self._limit),
            remedies=remedies,
        )

    def _remedies(self, config: TrialConfig) -> tuple[Remedy, ...]:
        """What each change alone, and all of them together, come to."""
        changes: dict[str, TrialConfig] = {}
        if config.model.quantization == "none":
            changes["quantization: nf4"] = config.changed(model=QUANTIZED)
        if not config.training.gradient_checkpointing:
            changes["gradient_checkpointing: true"] = config.changed(training={"gradient_checkpointing": True})
        rows, steps = config.training.per_device_train_batch_size, config.training.gradient_accumulation_steps
        if rows > 1:
            name = f"per_device_train_batch_size: 1 with gradient_accumulation_steps: {rows * steps}"
            changes[name] = config.changed(
                training={"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows * steps}
            )
        if len(changes) > 1:
            both = config.changed(training={"gradient_checkpointing": True, "per_device_train_batch_size": 1})
            changes["all of these"] = both.changed(model=QUANTIZED) if config.model.quantization == "none" else both
        found = []
        for name, changed in changes.items():
            predicted = self._predict(changed)
            if predicted is not None and self._limit is not None:
                found.append(Remedy(name, predicted.total, fits=predicted.allocated <= self._limit))
        return tuple(found)

    def _packs(self, trials: int, memory: Sequence[Memory]) -> int | None:
        size = self._spec.sweep.pack_size
        if size == "auto":
            return None
        fitting = [row.at_once for row in memory if row.at_once]
        return -(-trials // min(size, max(fitting, default=size)))

    # Work

    def _work(self, trainings: Trainings) -> Work:
        spec = self._spec
        examples = training_examples(spec.data)
        names = (*settings_with(Trait.MEMORY), *settings_with(Trait.WORK))
        shapes = list(_first(dict.fromkeys(configurations(spec, deciding(spec, names)))))
        speed = _measured_speed(spec, self._folder)
        if examples is None:
            return Work(None, None, None, None, speed, why_uncounted(spec.data))
        available = training_examples(spec.data.model_copy(update={"max_train_examples": None})) or examples

        def used(config: TrialConfig) -> int:
            return min(available, config.data.max_train_examples or available)

        per_epoch = [self._flops(config, used(config), epochs=1) for config in shapes]
        costs = [self._costs(config, used(config)) for config in trainings.examples]
        mean = [statistics.fmean(column) for column in zip(*costs, strict=True)]
        tokens, flops = (value * trainings.all for value in mean)
        return Work(
            examples=examples,
            flops_per_epoch=(min(per_epoch), max(per_epoch)),
            total_flops=flops,
            seconds=None if speed is None else tokens / speed,
            tokens_per_second=speed,
        )

    def _generation(self, trainings: Trainings) -> Generation:
        """What the answers to the held-out prompts take, those of the bare base counted."""
        self._progress("what answers take")
        spec = self._spec
        prompts, new = evaluation_examples(spec.data), spec.evaluation.max_new_tokens
        tests = unseen_examples(spec.data)
        rows = max(config.training.per_device_eval_batch_size for config in trainings.examples)
        rows = rows if prompts is None else min(rows, prompts)
        longest = max(config.data.max_length for config in trainings.examples)
        rounds = 1.0 if spec.evaluation.at == "end" else self._evaluations(trainings)
        once = trainings.all + (trainings.shared or 0) + 1
        answered = None if rounds is None else once + (rounds - 1) * trainings.all
        is_counted = prompts is not None and tests is not None and answered is not None
        return Generation(
            prompts=prompts,
            test_prompts=tests,
            max_new_tokens=new,
            rounds=rounds,
            tokens=round(new * ((prompts or 0) * (answered or 0) + (tests or 0) * once)) if is_counted else None,
            rows=rows,
            length=longest + new,
            kept_bytes=self._predictor(spec.model).kept_bytes(rows, longest, new),
        )

    def _evaluations(self, trainings: Trainings) -> float | None:
        """Of a training, on average; None where its rows are not counted."""
        examples = training_examples(self._spec.data)
        if not examples:
            return None
        plans = [BatchPlan(examples, config.training) for config in trainings.examples]
        return statistics.fmean(plan.evaluation(plan.total_steps) or 0 for plan in plans)  # the last one's number

    def _costs(self, config: TrialConfig, examples: int) -> tuple[float, float]:
        """Tokens and floating-point operations of a trial."""
        training = config.training
        per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
        epochs = training.max_steps * per_step / examples if training.max_steps else training.num_train_epochs
        return epochs * examples * config.data.max_length, self._flops(config, examples, epochs)

    def _flops(self, config: TrialConfig, examples: int, epochs: float) -> float:
        """2 + 2 per parameter of the frozen base and token, 2 + 4 per adapter parameter, as `total_flos` counts."""
        parameters = 4 * self._linears.total_parameters + 6 * trainable_parameters(self._linears, config.lora)
        return parameters * epochs * examples * config.data.max_length


def _first(configs: Iterable[TrialConfig]) -> Iterable[TrialConfig]:
    for index, config in enumerate(configs):
        if index == MOST_VARIANTS:
            return
        yield config


def _size(row: Memory) -> int:
    return row.predicted_bytes or 0


def _other(spec: StudySpec, config: TrialConfig) -> str:
    """What is searched and decides the memory beside the fields of `Memory`."""
    names = [name for name in settings_with(Trait.MEMORY) if name in spec.sweep.parameters]
    others = (name for name in names if name not in MEMORY_COLUMNS)
    return ", ".join(f"{name}={setting_text(name, value_of(config, name))}" for name in others)


def _space_text(spec: StudySpec, name: str) -> str:
    parameter = spec.sweep.parameters[name]
    when = " and ".join(f"{other} {_condition_text(one)}" for other, one in parameter.when.items())
    if parameter.values is not None:
        text = ", ".join(map(value_text, parameter.values))
    else:
        kind = ", log" if parameter.log else f", step {parameter.step}" if parameter.step is not None else ""
        text = f"{parameter.min} to {parameter.max}{kind}"
    return f"{text} (when {when})" if when else text


def _condition_text(condition: Condition) -> str:
    if condition.values is not None:
        return f"in {', '.join(map(value_text, condition.values))}"
    bounds = (("at least", condition.min), ("at most", condition.max))
    return " and ".join(f"{words} {value_text(bound)}" for words, bound in bounds if bound is not None)


def _adapters(shapes: Sequence[TrialConfig], linears: LinearMap) -> tuple[Adapter, ...]:
    rows: dict[tuple[int, str, str], Adapter] = {}
    for config in shapes:
        lora = config.lora
        key = (lora.r, targets_text(lora), value_text(lora.layers))
        if key not in rows:
            count = trainable_parameters(linears, lora)
            share = 100.0 * count / (linears.total_parameters + count)
            rows[key] = Adapter(*key, count, share, *placement(linears, lora))
    return tuple(sorted(rows.values(), key=lambda row: (row.target_modules, row.layers, row.r)))


def _measured_speed(spec: StudySpec, folder: RunFolder) -> float | None:
    """Median tokens per second of this study's finished trials, None where it has not begun."""
    if spec.storage is None and not folder.database.exists():
        return None
    try:
        with open_store(spec, storage_url(spec, folder), create=False) as store:
            speeds = [result.metrics.get("tokens_per_second", 0.0) for result in store.results()]
    except StorageError:
        return None  # what is not readable tells no speed, and a plan needs none
    known = [speed for speed in speeds if speed > 0]
    return statistics.median(known) if known else None
