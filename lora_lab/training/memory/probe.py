"""What trials on one base need: predicted before they train, and measured on a step of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_lab.common.sizes import bytes_text
from lora_lab.study.measures import MEASURES
from lora_lab.training.memory.predictor import MemoryPredictor
from lora_lab.training.packed.step import count_step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.base.loading import Base
    from lora_lab.training.batch import PackedBatch
    from lora_lab.training.live_bytes import LiveBytes
    from lora_lab.training.memory.predictor import MemoryPrediction
    from lora_lab.training.packed.model import PackedModel
    from lora_lab.training.packed.slot import Slot

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
    reserved: int | None = None
    """What it took from the device for that."""

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
        if self.allocated is not None and self.reserved is not None:
            figures |= {"allocated_memory_bytes": float(self.allocated), "reserved_memory_bytes": float(self.reserved)}
        return figures


def _measured_terms() -> Iterator[tuple[str, str]]:
    """The terms of the measured peak that stand in a trial's figures, each with its name there."""
    for name, measure in MEASURES.items():
        if measure.term is not None and measure.term not in KNOWN_ANYWAY:
            yield measure.term, name


class MemoryProbe:
    """Predicts and measures trials on one base.

    Args:
        base: The base, loaded.
        model: The same with adapters behind its modules.
    """

    def __init__(self, base: Base, model: PackedModel) -> None:
        self._base, self._model = base, model
        self._predictor: MemoryPredictor | None = None

    def predict(self, config: TrialConfig, batch: PackedBatch) -> MemoryPrediction | None:
        """The peak of a step on these rows; None where the base's forward pass cannot be run without data."""
        if self._predictor is None:
            device = self._base.device
            self._predictor = MemoryPredictor(
                self._base.model.config,
                config.model,
                "cuda" if device.type == "cuda" else "cpu",
                dtype=self._base.dtype,
                fused_attention=device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0),
            )
        return self._predictor.predict(config, batch)

    def measure(self, slot: Slot, batch: PackedBatch) -> TrialMemory:
        """Make one step of a slot, which is of no use afterwards, and count.

        Raises:
            RuntimeError: the device has no room for it (`memory.is_out_of_memory`).
        """
        predicted = self.predict(slot.config, batch)
        layout = self._model.layout(batch, [slot])
        device = self._base.device
        if device.type != "cuda":
            return TrialMemory(predicted, count_step(self._model, self._base.model, slot, layout))
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        live = count_step(self._model, self._base.model, slot, layout)
        others = before - live.resident  # the trials that are in the pack already
        return TrialMemory(
            predicted,
            live,
            allocated=torch.cuda.max_memory_allocated(device) - others,
            reserved=torch.cuda.max_memory_reserved(device) - others,
        )


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
