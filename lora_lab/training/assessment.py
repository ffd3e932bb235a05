"""What is measured of trials, and what they leave: evaluations, final figures, adapters."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from safetensors.numpy import save as save_arrays

from lora_lab.analysis.paired import token_mean
from lora_lab.common.activity import unwatched
from lora_lab.common.errors import InputError
from lora_lab.common.files import write_durably
from lora_lab.study.events import Diverged, Evaluated, Finished, Milestone, TrialEvent
from lora_lab.study.measures import EVAL_LOSS, TOKEN_ACCURACY, on_test
from lora_lab.study.trial_folder import TrialFolder
from lora_lab.training.best import Assessed, as_left, ends, judged_now, read_off
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
    from lora_lab.study.best import Judged
    from lora_lab.study.data_settings import DataSettings
    from lora_lab.study.measures import Source
    from lora_lab.study.settings import EvaluationSettings, TrialConfig
    from lora_lab.training.batch import PackedBatch, Padding, TokenLosses
    from lora_lab.training.datasets import DataCatalog
    from lora_lab.training.memory.trial_memory import KnownMemory
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
        tokenizer: Of the base that they share.
        base_parameters: Of that base.
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
        tokenizer: Any,
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
            tokenizer,
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
            [scored] = self._scored([None], [token_mean(held_out)], splits.eval, config)
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
                measured = list(zip(trials, held_out, strict=True))
                assessed = self._assessed([(trial, losses) for trial, losses in measured if _is_finite(losses)])
            for trial, losses in measured:
                if trial.number in assessed:
                    yield from self._evaluated(assessed[trial.number])
                else:
                    yield Diverged(**at(trial), reason=f"eval_loss is {token_mean(losses)}")

    def _assessed(self, measured: Sequence[tuple[Trial, ExampleLosses]]) -> dict[int, Assessed]:
        """Measure what else is due of trials with these losses, and how they stand; by number."""
        scored_now = [(trial, token_mean(losses)) for trial, losses in measured if _is_scored(trial, "evaluations")]
        now = self._scores(scored_now)
        judged = {trial.number: judged_now(trial, losses, now.get(trial.number)) for trial, losses in measured}
        leaving = [trial for trial, _ in measured if _is_left(trial, judged[trial.number])]
        with ExitStack() as stack:
            for trial in leaving:
                stack.enter_context(as_left(trial, judged[trial.number]))
            scored_at_the_end = [trial for trial in leaving if _is_scored(trial, "end")]
            left = self._scores([(trial, judged[trial.number].left.eval_loss) for trial in scored_at_the_end])
            tested = self._tested(leaving)
        return {
            trial.number: Assessed(
                trial=trial,
                losses=losses,
                judged=judged[trial.number],
                now=now.get(trial.number),
                left=left.get(trial.number),
                tested=tested.get(trial.number),
            )
            for trial, losses in measured
        }

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
        scored = self._scored(numbers, [token_mean(own) for own in losses], test, config)
        return [Tested(*one) for one in zip(losses, scored, strict=True)]

    def _scores(self, trials: Sequence[tuple[Trial, float]]) -> dict[int, Scored]:
        """What trials with these eval_losses are measured by beside them, by number."""
        groups: dict[EvaluationSettings, list[tuple[Trial, float]]] = {}
        for trial, eval_loss in trials:
            groups.setdefault(trial.config.evaluation, []).append((trial, eval_loss))
        found: dict[int, Scored] = {}
        for members in groups.values():
            first, numbers = members[0][0], [trial.number for trial, _ in members]
            scored = self._scored(numbers, [loss for _, loss in members], first.data.eval, first.config)
            found |= dict(zip(numbers, scored, strict=True))
        return found

    def _scored(
        self,
        numbers: Sequence[int | None],
        eval_losses: Sequence[float],
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
            for index, own in enumerate(eval_losses)
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

    def _evaluated(self, assessed: Assessed) -> list[TrialEvent]:
        """Write an evaluation, and tell it."""
        trial, judged, files = assessed.trial, assessed.judged, self._files(assessed.trial)
        _save_losses(files.evaluation(judged.now.evaluation), assessed.losses)
        for scored, of in ((assessed.now, judged.now), (assessed.left, judged.left)):
            if scored is not None:
                _save_scores(files, of.evaluation, scored)
        general, endings = self._leave(assessed)
        evaluated = Evaluated(
            **at(trial),
            evaluation=judged.now.evaluation,
            eval_loss=judged.now.eval_loss,
            forgetting_loss=general if judged.is_left else None,
            costs=self._costs(trial) | assessed.scores_now,
            failures=assessed.failures,
        )
        trial.progress.evaluated(judged, trial.values)  # last: until here memory may run out, and it is made again
        return [evaluated, *endings]

    def _leave(self, assessed: Assessed) -> tuple[float | None, list[Milestone | Finished]]:
        """Write what is left here by the trial, and by the shorter runs that are read off it.

        Returns:
            The trial's loss on general text, where it ends and there is such text; and the endings.
        """
        trial, judged = assessed.trial, assessed.judged
        is_over, given = ends(trial, judged), read_off(trial, judged)
        if not is_over and not given:
            return None, []
        endings: list[Milestone | Finished] = []
        with as_left(trial, judged):
            general = self._general(trial)
            metrics = self._final_metrics(trial, judged, general) | assessed.figures_left
            for milestone in given:
                self._write(
                    assessed, begin_folder(self._files(trial), milestone.epochs, judged.now.evaluation), general
                )
                words = judged.words(is_last_step=milestone.ends and milestone.step == trial.progress.step)
                endings.append(milestone_reached(trial, milestone, judged.now.evaluation, metrics, words))
            if is_over:
                self._write(assessed, self._files(trial), general)
                words = judged.words(is_last_step=trial.progress.finished)
                endings.append(Finished(**at(trial), metrics=metrics, reason=words))
        return (token_mean(general) if is_over and general is not None else None), endings

    def _general(self, trial: Trial) -> ExampleLosses | None:
        """The losses on general text, as the trial is now; None where there is no such text."""
        if trial.data.forgetting is None:
            return None
        with _timed([trial]):
            [losses] = self._measure(trial.data.forgetting, trial.objective, [trial.number], trial.config)
        return losses

    def _write(self, assessed: Assessed, files: TrialFolder, general: ExampleLosses | None) -> None:
        """Write the adapter, as it is now, and what it is worth on general text and on test rows."""
        if general is not None:
            _save_losses(files.forgetting, general)
        if assessed.tested is not None:
            _save_tested(files, assessed.judged.left.evaluation, assessed.tested)
        self._save_adapter(assessed.trial.number, files.adapter)

    def _costs(self, trial: Trial) -> dict[str, float]:
        """What is known before the end of the figures that a study may want to be small."""
        progress = trial.progress
        seconds = progress.counters.train_seconds / progress.step * progress.plan.total_steps
        costs = {"trainable_params": float(trial.parameter_count), "train_seconds": seconds}
        peak = self._memory.figures(trial).get("peak_memory_bytes")
        return costs if peak is None else costs | {"peak_memory_bytes": peak}

    def _final_metrics(self, trial: Trial, judged: Judged, general: ExampleLosses | None) -> dict[str, float]:
        done, count, total = trial.progress.counters, trial.parameter_count, self._base_parameters
        metrics = {
            "eval_loss": judged.left.eval_loss,
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
            "epochs": trial.progress.plan.epoch(done.step),
            **judged.figures,
            **self._memory.figures(trial),
        }
        _, before = self.base_losses(trial.config)
        if general is not None and before is not None:
            metrics["forgetting"] = token_mean(general) - before
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


def _is_left(trial: Trial, judged: Judged) -> bool:
    """Whether the trial, or a shorter run that is read off it, leaves an adapter here."""
    return ends(trial, judged) or bool(read_off(trial, judged))


def _is_scored(trial: Trial, at: Literal["end", "evaluations"]) -> bool:
    """Whether more than losses is measured of a trial there."""
    settings = trial.config.evaluation
    return bool(settings.metrics) and settings.at == at


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


def _save_tested(files: TrialFolder, number: int, tested: Tested) -> None:
    """Write what was measured of every test row beside evaluation `number`."""
    _save_losses(files.evaluation(number, on_test(EVAL_LOSS.name)), tested.losses)
    if tested.scored is not None:
        _save_scores(files, number, tested.scored, test=True)


def _words(numbers: Sequence[int | None]) -> str:
    """An evaluation of these trials, None for the bare base, in words."""
    if None in numbers:
        return "evaluation of the bare base"
    return f"evaluation of {'trial' if len(numbers) == 1 else 'trials'} {', '.join(map(str, numbers))}"


def _save_losses(path: Path, losses: ExampleLosses) -> None:
    write_durably(path, save_arrays({"nll": losses.nll, "label_tokens": losses.label_tokens}))
