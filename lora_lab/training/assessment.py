"""What is measured of trials, and what they leave: evaluations, final figures, adapters, branches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from safetensors.numpy import save as save_arrays

from lora_lab.common.files import write_durably
from lora_lab.study.events import Diverged, Evaluated, Finished, Milestone, TrialEvent
from lora_lab.training.checkpoint import checkpoint_identity, write_checkpoint
from lora_lab.training.evaluation import ExampleLosses, evaluate
from lora_lab.training.milestones import EVALUATIONS, begin_folder, evaluation_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from lora_lab.study.settings import DataSettings, TrialConfig
    from lora_lab.training.base.loading import Base
    from lora_lab.training.datasets import DataCatalog, TokenizedSplits
    from lora_lab.training.evaluation import Measurable
    from lora_lab.training.milestones import PlannedMilestone
    from lora_lab.training.packed.slot import Progress
    from lora_lab.training.schedule import BatchPlan


class Assessed(Protocol):
    """A trial in training, on either engine."""

    number: int
    config: TrialConfig
    plan: BatchPlan
    data: TokenizedSplits
    progress: Progress
    milestones: list[PlannedMilestone]

    @property
    def finished(self) -> bool:
        """Whether the last optimizer step is done."""

    @property
    def due_evaluation(self) -> int | None:
        """The number of the evaluation to make now, or None."""

    @property
    def parameter_count(self) -> int:
        """Trained parameters."""

    @property
    def added_parameters(self) -> int:
        """Those of them that the base does not have."""

    @property
    def adapter_bytes(self) -> int:
        """Of the trained parameters."""

    @property
    def optimizer_bytes(self) -> int:
        """What the optimizer keeps beside them."""

    def flops(self, tokens: int, base_parameters: int) -> int:
        """Of training on so many tokens."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""


S = TypeVar("S", bound=Assessed)


class Assessor(Generic[S]):
    """Evaluates trials, and writes what they leave.

    Args:
        base: The base that they share.
        model: The same with their adapters behind its modules.
        data: Where their token sets come from.
        trials_folder: Each trial has a folder of its own here.
        memory: Figures of what a trial needs alone, by their MLflow names, as far as they are known.
        save_adapter: Writes a trial's adapter as it is now into a folder.
    """

    def __init__(
        self,
        base: Base,
        model: Measurable[S | None],
        data: DataCatalog,
        trials_folder: Path,
        *,
        memory: Callable[[S], Mapping[str, float]],
        save_adapter: Callable[[S, Path], None],
    ) -> None:
        self._base, self._model, self._data, self._folder = base, model, data, trials_folder
        self._memory, self._write_adapter = memory, save_adapter
        self._base_losses: dict[DataSettings, tuple[float, float | None]] = {}

    def base_losses(self, config: TrialConfig) -> tuple[float, float | None]:
        """eval_loss and loss on the forgetting text of the bare base, measured once per data settings."""
        if config.data not in self._base_losses:
            splits = self._data.splits(config.data)
            rows = config.training.per_device_eval_batch_size
            [held_out] = evaluate(self._model, splits.eval, [None], rows)
            general = evaluate(self._model, splits.forgetting, [None], rows)[0] if splits.forgetting else None
            self._base_losses[config.data] = (held_out.mean, general.mean if general else None)
        return self._base_losses[config.data]

    def evaluate(self, due: Sequence[S]) -> Iterator[TrialEvent]:
        """Make the evaluations that are due, those of trials with the same data in one pass."""
        groups: dict[tuple[DataSettings, int], list[S]] = {}
        for slot in due:
            key = (slot.config.data, slot.config.training.per_device_eval_batch_size)
            groups.setdefault(key, []).append(slot)
        for (_, rows), slots in groups.items():
            held_out = evaluate(self._model, slots[0].data.eval, slots, rows)
            for slot, losses in zip(slots, held_out, strict=True):
                yield from self._evaluated(slot, losses)

    def _evaluated(self, slot: S, losses: ExampleLosses) -> list[TrialEvent]:
        number = slot.due_evaluation
        assert number is not None
        where = {"number": slot.number, "step": slot.progress.step}
        epoch = slot.plan.epoch(slot.progress.step)
        if not losses.mean < float("inf"):
            return [Diverged(**where, epoch=epoch, reason=f"eval_loss is {losses.mean}")]
        folder = self._trial_folder(slot)
        _save_losses(folder / EVALUATIONS / evaluation_file(number), losses)
        forgetting = self._forgetting(slot, folder) if slot.finished else None
        evaluated = Evaluated(
            **where,
            epoch=epoch,
            evaluation=number,
            eval_loss=losses.mean,
            forgetting_loss=forgetting,
            costs=self._costs(slot),
        )
        events: list[TrialEvent] = [evaluated]
        ending = [one for one in slot.milestones if one.ends and one.step == slot.progress.step]
        events += [self._read_off(slot, milestone, evaluated) for milestone in ending]
        if slot.finished:
            metrics = self._final_metrics(slot, evaluated, forgetting)
            self._write_adapter(slot, folder / "adapter")
            events.append(Finished(**where, epoch=epoch, metrics=metrics))
        slot.progress.last_evaluation = number  # at the end: until here, memory may run out, and it comes again
        return events

    def _forgetting(self, slot: S, folder: Path) -> float | None:
        """The loss on general text, whose parts go into `folder`; None where there is no such text."""
        if slot.data.forgetting is None:
            return None
        rows = slot.config.training.per_device_eval_batch_size
        [general] = evaluate(self._model, slot.data.forgetting, [slot], rows)
        _save_losses(folder / EVALUATIONS / "forgetting.safetensors", general)
        return general.mean

    def _read_off(self, slot: S, milestone: PlannedMilestone, evaluated: Evaluated) -> Milestone:
        """What the shorter run would end with, which is this trial as it is now."""
        number = evaluated.evaluation
        folder = begin_folder(self._trial_folder(slot), milestone.epochs, number)
        metrics = self._final_metrics(slot, evaluated, self._forgetting(slot, folder))
        self._write_adapter(slot, folder / "adapter")
        return self._milestone(slot, milestone, number, metrics)

    def branch_off(self, slot: S) -> Iterator[Milestone]:
        """Checkpoints for the shorter runs whose rates begin to fall here, once their evaluation here is made."""
        if slot.due_evaluation is not None:
            return
        for milestone in tuple(slot.milestones):
            if milestone.step == slot.progress.step and not milestone.ends:
                slot.milestones.remove(milestone)
                evaluations = slot.progress.last_evaluation
                folder = begin_folder(self._trial_folder(slot), milestone.epochs, evaluations)
                identity = checkpoint_identity(milestone.config, slot.data)
                write_checkpoint(folder / "checkpoint", identity, slot.state(), slot.progress)
                yield self._milestone(slot, milestone, evaluations, {})

    def _milestone(self, slot: S, milestone: PlannedMilestone, evaluation: int, metrics: dict[str, float]) -> Milestone:
        step = slot.progress.step
        return Milestone(
            number=slot.number,
            step=step,
            epoch=slot.plan.epoch(step),
            epochs=milestone.epochs,
            evaluation=evaluation,
            metrics=metrics,
        )

    def _costs(self, slot: S) -> dict[str, float]:
        """What is known before the end of the figures that a study may want to be small."""
        seconds = slot.progress.train_seconds / slot.progress.step * slot.plan.total_steps
        costs = {"trainable_params": float(slot.parameter_count), "train_seconds": seconds}
        peak = self._memory(slot).get("peak_memory_bytes")
        return costs if peak is None else costs | {"peak_memory_bytes": peak}

    def _final_metrics(self, slot: S, evaluated: Evaluated, forgetting: float | None) -> dict[str, float]:
        progress, count, total = slot.progress, slot.parameter_count, self._base.linears.total_parameters
        metrics = {
            "eval_loss": evaluated.eval_loss,
            "trainable_params": float(count),
            "trainable_percent": 100.0 * count / (total + slot.added_parameters),
            "adapter_bytes": float(slot.adapter_bytes),
            "optimizer_bytes": float(slot.optimizer_bytes),
            "train_seconds": progress.train_seconds,
            "train_tokens": float(progress.train_tokens),
            "tokens_per_second": progress.train_tokens / progress.train_seconds if progress.train_seconds else 0.0,
            "total_flos": float(slot.flops(progress.train_tokens, total)),
            "steps": float(progress.step),
            "epochs": evaluated.epoch,
            **self._memory(slot),
        }
        _, before = self.base_losses(slot.config)
        if forgetting is not None and before is not None:
            metrics["forgetting"] = forgetting - before
        return metrics

    def _trial_folder(self, slot: S) -> Path:
        return self._folder / f"{slot.number:04d}"


def _save_losses(path: Path, losses: ExampleLosses) -> None:
    write_durably(path, save_arrays({"nll": losses.nll, "label_tokens": losses.label_tokens}))
