"""What is measured of trials, and what they leave: evaluations, final figures, adapters."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from safetensors.numpy import save as save_arrays

from lora_lab.analysis.paired import token_mean
from lora_lab.common.activity import unwatched
from lora_lab.common.errors import InputError
from lora_lab.common.files import write_durably
from lora_lab.study.events import Diverged, Evaluated, Finished, Milestone, TrialEvent
from lora_lab.study.measures import EVAL_LOSS, TOKEN_ACCURACY, on_test
from lora_lab.study.trial_folder import TrialFolder
from lora_lab.training.choice_scoring import ChoiceScorer
from lora_lab.training.evaluation import evaluate
from lora_lab.training.milestones import begin_folder
from lora_lab.training.objective import LanguageModeling, objective_of
from lora_lab.training.progress import training_flops
from lora_lab.training.scoring import Tested, merged
from lora_lab.training.trial_events import at, milestone_reached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from lora_lab.analysis.paired import ExampleLosses
    from lora_lab.common.activity import Beat
    from lora_lab.data.tokens import TokenizedDataset
    from lora_lab.study.measures import Source
    from lora_lab.study.settings import DataSettings, EvaluationSettings, TrialConfig
    from lora_lab.training.batch import PackedBatch, Padding, TokenLosses
    from lora_lab.training.datasets import DataCatalog
    from lora_lab.training.memory.trial_memory import KnownMemory
    from lora_lab.training.milestones import PlannedMilestone
    from lora_lab.training.objective import Objective
    from lora_lab.training.scoring import Scored, Scorer
    from lora_lab.training.trial import Trial

    TokenLossesOf = Callable[[PackedBatch, Sequence[int | None]], TokenLosses]
    """Losses of a batch's label tokens; its rows are of the trials with these numbers, None is the bare base."""


BEFORE_TRAINING = 0
"""The number of the bare base's evaluation; those of trials count from 1."""


class Assessor:
    """Evaluates trials, and writes what they leave.

    Args:
        data: Where their token sets come from.
        trials_folder: Each trial has a folder of its own here.
        base_parameters: Of the base that they share.
        memory: What is known of their memory.
        padding: To which length the rows of an evaluation are padded.
        token_losses: Computes losses with the adapters of trials in training.
        token_hits: Tells in the same way which label tokens are the most likely ones, as negative numbers.
        scorer: Lets them answer prompts, or tell classes, where they are measured by that.
        save_adapter: Writes the adapter of the trial with this number, as it is now, into a folder.
        beat: Called before each batch of an evaluation.
    """

    def __init__(
        self,
        data: DataCatalog,
        trials_folder: Path,
        *,
        base_parameters: int,
        memory: KnownMemory,
        padding: Padding,
        token_losses: TokenLossesOf,
        token_hits: TokenLossesOf,
        scorer: Scorer,
        save_adapter: Callable[[int, Path], None],
        beat: Beat = unwatched,
    ) -> None:
        self._data, self._trials_folder, self._base_parameters = data, trials_folder, base_parameters
        self._memory, self._token_losses, self._save_adapter = memory, token_losses, save_adapter
        self._padding, self._scorer, self._token_hits, self._beat = padding, scorer, token_hits, beat
        self._choices = ChoiceScorer(
            data.tokenizer,
            lambda rows, numbers, config: self._measure(rows, LanguageModeling(), numbers, config),
            padding.most,
        )
        self._base_losses: dict[tuple[DataSettings, Objective], tuple[ExampleLosses, ExampleLosses | None]] = {}

    def base_losses(self, config: TrialConfig) -> tuple[float, float | None]:
        """eval_loss and loss on the forgetting text of the bare base, measured once per data settings."""
        held_out, general = self._base_examples(config)
        return token_mean(held_out), None if general is None else token_mean(general)

    def base_scores(self, config: TrialConfig) -> dict[str, float]:
        """The metrics that `config.evaluation` asks for, and all that is measured on test rows, of the bare base."""
        splits, values = self._data.splits(config.data), {}
        if config.evaluation.metrics:
            held_out, _ = self._base_examples(config)
            [scored] = self._scored([None], [held_out], splits.eval, config)
            _require_measured(scored)
            _save_scores(TrialFolder.of_base(self._trials_folder), BEFORE_TRAINING, scored)
            values = scored.values
        if splits.test is not None:
            [tested] = self._on_test([None], splits.test, config)
            if tested.scored is not None:
                _require_measured(tested.scored)
            values |= tested.values
        return values

    def _base_examples(self, config: TrialConfig) -> tuple[ExampleLosses, ExampleLosses | None]:
        """The bare base's losses of every held-out example, and of every one of the forgetting text."""
        objective = objective_of(config)
        key = (config.data, objective)
        if key not in self._base_losses:
            splits = self._data.splits(config.data)

            def measured(dataset: TokenizedDataset) -> ExampleLosses:
                [losses] = self._measure(dataset, objective, [None], config)
                return losses

            held_out = measured(splits.eval)
            self._base_losses[key] = (held_out, measured(splits.forgetting) if splits.forgetting else None)
        return self._base_losses[key]

    def evaluate(self, due: Sequence[Trial]) -> Iterator[TrialEvent]:
        """Make the evaluations that are due, those of trials with the same data and objective in one pass."""
        groups: dict[tuple[DataSettings, Objective, int], list[Trial]] = {}
        for trial in due:
            key = (trial.config.data, trial.objective, trial.config.training.per_device_eval_batch_size)
            groups.setdefault(key, []).append(trial)
        for (_, objective, _), trials in groups.items():
            first, numbers = trials[0], [trial.number for trial in trials]
            with _timed(trials):
                held_out = self._measure(first.data.eval, objective, numbers, first.config)
                scores = self._scores(trials, held_out)
                finite = [trial for trial, losses in zip(trials, held_out, strict=True) if _is_finite(losses)]
                tested = self._tested([trial for trial in finite if trial.progress.finished or _ending(trial)])
            for trial, losses in zip(trials, held_out, strict=True):
                yield from self._evaluated(trial, losses, scores.get(trial.number), tested.get(trial.number))

    def _tested(self, trials: Sequence[Trial]) -> dict[int, Tested]:
        """What trials are worth, as they are now, on rows that choose nothing, by number; none without such rows."""
        groups: dict[EvaluationSettings, list[Trial]] = {}
        for trial in trials:
            groups.setdefault(trial.config.evaluation, []).append(trial)
        found: dict[int, Tested] = {}
        for members in groups.values():
            numbers, test = [trial.number for trial in members], members[0].data.test
            if test is not None:
                found |= zip(numbers, self._on_test(numbers, test, members[0].config), strict=True)
        return found

    def _on_test(self, numbers: Sequence[int | None], test: TokenizedDataset, config: TrialConfig) -> list[Tested]:
        losses = self._measure(test, objective_of(config), numbers, config)
        if not config.evaluation.metrics:
            return [Tested(own, None) for own in losses]
        return [Tested(*one) for one in zip(losses, self._scored(numbers, losses, test, config), strict=True)]

    def _scores(self, trials: Sequence[Trial], losses: Sequence[ExampleLosses]) -> dict[int, Scored]:
        """What those of the trials are measured by beside their losses of which it is due, by number."""
        groups: dict[EvaluationSettings, list[Trial]] = {}
        by_number = {trial.number: own for trial, own in zip(trials, losses, strict=True)}
        for trial, own in zip(trials, losses, strict=True):
            if _is_scored(trial) and _is_finite(own):
                groups.setdefault(trial.config.evaluation, []).append(trial)
        return {
            trial.number: scored
            for members in groups.values()
            for trial, scored in zip(
                members,
                self._scored(
                    [one.number for one in members],
                    [by_number[one.number] for one in members],
                    members[0].data.eval,
                    members[0].config,
                ),
                strict=True,
            )
        }

    def _scored(
        self,
        numbers: Sequence[int | None],
        losses: Sequence[ExampleLosses],
        dataset: TokenizedDataset,
        config: TrialConfig,
    ) -> list[Scored]:
        """What `config.evaluation` asks for, of trials with these numbers and losses."""
        names = config.evaluation.metrics
        hits = None
        if TOKEN_ACCURACY.name in names:
            hits = self._measure(dataset, LanguageModeling(), numbers, config, self._token_hits)
        questioned = [scorer.score(numbers, dataset, config) for scorer in self._asked(config)]
        return [
            merged(names, own, None if hits is None else hits[index], [scored[index] for scored in questioned])
            for index, own in enumerate(losses)
        ]

    def _asked(self, config: TrialConfig) -> list[Scorer]:
        """Who measures what `config.evaluation` asks for and a loss does not tell."""
        scorers: dict[Source, Scorer] = {
            "choices": self._choices,
            "answers": self._scorer,
            "classes": self._scorer,
        }
        task = config.model.task_type
        return [scorer for source, scorer in scorers.items() if config.evaluation.metrics_of(source, task)]

    def _measure(
        self,
        dataset: TokenizedDataset,
        objective: Objective,
        numbers: Sequence[int | None],
        config: TrialConfig,
        of_tokens: TokenLossesOf | None = None,
    ) -> list[ExampleLosses]:
        """The losses of every example, of trials that are evaluated in batches as `config` has them."""
        measure = of_tokens or self._token_losses
        return evaluate(
            lambda batch: measure(batch, numbers),
            dataset,
            objective,
            trials=len(numbers),
            rows_per_trial=config.training.per_device_eval_batch_size,
            length_of=self._padding.evaluation,
            what=_words(numbers),
            beat=self._beat,
        )

    def _evaluated(
        self, trial: Trial, losses: ExampleLosses, scored: Scored | None, tested: Tested | None
    ) -> list[TrialEvent]:
        number, progress, files = trial.progress.due_evaluation, trial.progress, self._files(trial)
        assert number is not None
        eval_loss = token_mean(losses)
        if not _is_finite(losses):
            return [Diverged(**at(trial), reason=f"eval_loss is {eval_loss}")]
        _save_losses(files.evaluation(number), losses)
        if scored is not None:
            _save_scores(files, number, scored)
        scores = {} if scored is None else scored.values
        forgetting = self._forgetting(trial, files) if progress.finished else None
        evaluated = Evaluated(
            **at(trial),
            evaluation=number,
            eval_loss=eval_loss,
            forgetting_loss=forgetting,
            costs=self._costs(trial) | scores,
            failures=({} if scored is None else scored.failures) | ({} if tested is None else tested.failures),
        )
        events: list[TrialEvent] = [evaluated]
        events += [self._read_off(trial, milestone, evaluated, scores, tested) for milestone in _ending(trial)]
        if progress.finished:
            metrics = self._final_metrics(trial, evaluated, forgetting) | scores | _keep_tested(files, number, tested)
            self._save_adapter(trial.number, files.adapter)
            events.append(Finished(**at(trial), metrics=metrics))
        progress.counters.last_evaluation = number  # last: until here memory may run out, and it is made again
        return events

    def _forgetting(self, trial: Trial, files: TrialFolder) -> float | None:
        """The loss on general text, whose parts go into `files`; None where there is no such text."""
        if trial.data.forgetting is None:
            return None
        with _timed([trial]):
            [general] = self._measure(trial.data.forgetting, trial.objective, [trial.number], trial.config)
        _save_losses(files.forgetting, general)
        return token_mean(general)

    def _read_off(
        self,
        trial: Trial,
        milestone: PlannedMilestone,
        evaluated: Evaluated,
        scores: dict[str, float],
        tested: Tested | None,
    ) -> Milestone:
        """What the shorter run would end with, which is this trial as it is now."""
        number = evaluated.evaluation
        files = begin_folder(self._files(trial), milestone.epochs, number)
        metrics = self._final_metrics(trial, evaluated, self._forgetting(trial, files)) | scores
        metrics |= _keep_tested(files, number, tested)
        self._save_adapter(trial.number, files.adapter)
        return milestone_reached(trial, milestone, number, metrics)

    def _costs(self, trial: Trial) -> dict[str, float]:
        """What is known before the end of the figures that a study may want to be small."""
        progress = trial.progress
        seconds = progress.counters.train_seconds / progress.step * progress.plan.total_steps
        costs = {"trainable_params": float(trial.parameter_count), "train_seconds": seconds}
        peak = self._memory.figures(trial).get("peak_memory_bytes")
        return costs if peak is None else costs | {"peak_memory_bytes": peak}

    def _final_metrics(self, trial: Trial, evaluated: Evaluated, forgetting: float | None) -> dict[str, float]:
        done, count, total = trial.progress.counters, trial.parameter_count, self._base_parameters
        metrics = {
            "eval_loss": evaluated.eval_loss,
            "trainable_params": float(count),
            "trainable_percent": 100.0 * count / (total + trial.added_parameters),
            "adapter_bytes": float(trial.adapter_bytes),
            "optimizer_bytes": float(trial.optimizer_bytes),
            "train_seconds": done.train_seconds,
            "eval_seconds": done.eval_seconds,
            "train_tokens": float(done.train_tokens),
            "tokens_per_second": done.train_tokens / done.train_seconds if done.train_seconds else 0.0,
            "total_flos": float(training_flops(done.train_tokens, total, count)),
            "steps": float(done.step),
            "epochs": evaluated.epoch,
            **self._memory.figures(trial),
        }
        _, before = self.base_losses(trial.config)
        if forgetting is not None and before is not None:
            metrics["forgetting"] = forgetting - before
        return metrics

    def _files(self, trial: Trial) -> TrialFolder:
        return TrialFolder.of(self._trials_folder, trial.number)


@contextmanager
def _timed(trials: Sequence[Trial]) -> Iterator[None]:
    """Count the time of a block as evaluation, an equal share for each of the trials; it is no training time."""
    began = time.perf_counter()
    yield
    share = (time.perf_counter() - began) / len(trials)
    for trial in trials:
        trial.progress.counters.eval_seconds += share


def _ending(trial: Trial) -> list[PlannedMilestone]:
    """The shorter runs that end where the trial is now."""
    return [one for one in trial.progress.milestones if one.ends and one.step == trial.progress.step]


def _is_scored(trial: Trial) -> bool:
    """Whether the evaluation that is due measures more than losses."""
    settings = trial.config.evaluation
    return bool(settings.metrics) and (settings.at == "evaluations" or trial.progress.finished or bool(_ending(trial)))


def _is_finite(losses: ExampleLosses) -> bool:
    return token_mean(losses) < float("inf")


def _save_scores(files: TrialFolder, number: int, scored: Scored, *, test: bool = False) -> None:
    for name, losses in scored.examples.items():
        _save_losses(files.evaluation(number, on_test(name) if test else name), losses)
    if scored.predictions:
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in scored.predictions)
        write_durably(files.predictions(number, test=test), "".join(lines))


def _require_measured(scored: Scored) -> None:
    """Raise InputError where a metric of one's own cannot even score the bare base: there would be no gain over it."""
    for reason in scored.failures.values():
        raise InputError(reason)


def _keep_tested(files: TrialFolder, number: int, tested: Tested | None) -> dict[str, float]:
    """Write what was measured of every test row beside evaluation `number`; the figures."""
    if tested is None:
        return {}
    _save_losses(files.evaluation(number, on_test(EVAL_LOSS.name)), tested.losses)
    if tested.scored is not None:
        _save_scores(files, number, tested.scored, test=True)
    return tested.values


def _words(numbers: Sequence[int | None]) -> str:
    """An evaluation of these trials, None for the bare base, in words."""
    if None in numbers:
        return "evaluation of the bare base"
    return f"evaluation of {'trial' if len(numbers) == 1 else 'trials'} {', '.join(map(str, numbers))}"


def _save_losses(path: Path, losses: ExampleLosses) -> None:
    write_durably(path, save_arrays({"nll": losses.nll, "label_tokens": losses.label_tokens}))
