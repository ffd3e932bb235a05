"""What is known of the memory that trials need alone: counted once for all that need the same, and put into words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.common.sizes import bytes_text
from lora_lab.study.measures import MEASURES
from lora_lab.training.batch import largest_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    import numpy as np

    from lora_lab.training.live_bytes import LiveBytes
    from lora_lab.training.memory.predictor import MemoryPrediction
    from lora_lab.training.trial import Trial

KNOWN_ANYWAY = ("adapters", "optimizer")
"""Terms of the peak that a trial's figures have without measuring."""


@dataclass(frozen=True, slots=True)
class TrialMemory:
    """What a trial that trains alone needs at its peak, in bytes."""

    predicted: MemoryPrediction | None
    """None where the base's forward pass cannot be run without data."""
    measured: LiveBytes | None = None
    """None where the device had no room for the step that would have been measured."""
    allocated: int | None = None
    """What torch's CUDA allocator handed out at most, None on a CPU."""
    requested: int | None = None
    """What was asked of it: the difference is unused in its blocks."""

    @property
    def peak_bytes(self) -> int:
        """The measured peak; what was predicted, where that is all that is known."""
        if self.measured is not None:
            return self.measured.peak
        return 0 if self.predicted is None else self.predicted.allocated

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that are known, by their MLflow names."""
        figures: dict[str, float] = {}
        if self.predicted is not None:
            figures["predicted_memory_bytes"] = float(self.predicted.allocated)
        if self.measured is not None:
            figures["peak_memory_bytes"] = float(self.measured.peak)
            figures |= {name: float(self.measured.terms[term]) for term, name in _measured_terms()}
        if self.predicted is not None and self.measured is not None:
            excess = self.predicted.allocated - self.measured.peak
            figures["memory_error_percent"] = 100.0 * excess / self.measured.peak
        if self.allocated is not None and self.requested is not None:
            handed_out = {"allocated_memory_bytes": self.allocated, "requested_memory_bytes": self.requested}
            figures |= {name: float(size) for name, size in handed_out.items()}
        return figures


def _measured_terms() -> Iterator[tuple[str, str]]:
    """The terms of the measured peak that stand in a trial's figures, each with its name there."""
    for name, measure in MEASURES.items():
        if measure.term is not None and measure.term not in KNOWN_ANYWAY:
            yield measure.term, name


class KnownMemory:
    """The memory of trials, measured once per distinct shape."""

    def __init__(self) -> None:
        self._by_shape: dict[Hashable, TrialMemory] = {}

    @property
    def all(self) -> tuple[TrialMemory, ...]:
        """Everything measured so far, in that order."""
        return tuple(self._by_shape.values())

    def of(self, trial: Trial) -> TrialMemory | None:
        """What a trial needs alone; None where it was not measured."""
        return self._by_shape.get(_shape(trial, _largest_step(trial)))

    def figures(self, trial: Trial) -> dict[str, float]:
        """The figures of what a trial needs alone, by their MLflow names, as far as they are known."""
        memory = self.of(trial)
        return {} if memory is None else memory.metrics

    def measure(self, trial: Trial, count: Callable[[np.ndarray], TrialMemory]) -> None:
        """Measure a trial's largest step, unless a trial of its shape was measured before.

        Args:
            trial: The trial.
            count: Makes one step on these rows of its training examples, and counts.

        Raises:
            RuntimeError: the device has no room for the step (`device.is_out_of_memory`).
        """
        rows = _largest_step(trial)
        shape = _shape(trial, rows)
        if shape not in self._by_shape:
            self._by_shape[shape] = count(rows)


def _largest_step(trial: Trial) -> np.ndarray:
    """The rows of the micro-batch that needs the most memory."""
    return largest_rows(trial.data.train, trial.config.training.per_device_train_batch_size)


def _shape(trial: Trial, rows: np.ndarray) -> Hashable:
    """What decides a trial's memory."""
    return trial.memory_shape, len(rows), len(trial.data.train.input_ids[rows[-1]])


def does_not_fit(predicted: MemoryPrediction | None, available: int | None, detail: str) -> str:
    """Why a trial cannot train on this device even alone, and what would help."""
    needed = "" if predicted is None else f"it needs {_exactly(predicted.allocated)} by prediction"
    there = "" if available is None else f"{_exactly(available)} are available"
    known = ", ".join(part for part in (needed, there, detail) if part)
    return (
        f"does not fit even alone ({known}); lower per_device_train_batch_size (with gradient_accumulation_steps) or "
        "data.max_length, set training.gradient_checkpointing, or quantize the base"
    )


def _exactly(size: int) -> str:
    """Both, as what does not fit may differ from what is there in the fourth digit."""
    return f"{size:,} bytes ({bytes_text(size)})"
