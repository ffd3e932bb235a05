"""What trials on one base need: predicted before they train, and measured on a step of their own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from lora_lab.common.activity import Activity, unwatched
from lora_lab.training.memory.predictor import predictor_of
from lora_lab.training.memory.trial_memory import TrialMemory
from lora_lab.training.packed.step import count_step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.common.activity import Beat
    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.base.loading import Base
    from lora_lab.training.batch import PackedBatch
    from lora_lab.training.live_bytes import LiveBytes
    from lora_lab.training.memory.predictor import MemoryPrediction, MemoryPredictor
    from lora_lab.training.packed.model import PackedModel
    from lora_lab.training.packed.slot import Slot


class MemoryProbe:
    """Predicts and measures trials on one base.

    Args:
        base: The base, loaded.
        model: The same with adapters behind its modules.
        beat: Called before each operation of a step that is measured.
    """

    def __init__(self, base: Base, model: PackedModel, beat: Beat = unwatched) -> None:
        self._base, self._model, self._beat = base, model, beat
        self._predictor: MemoryPredictor | None = None
        self._is_warm = False

    def predict(self, config: TrialConfig, batch: PackedBatch) -> MemoryPrediction | None:
        """The peak of a step on these rows; None where the base's forward pass cannot be run without data."""
        if self._predictor is None:
            device = self._base.device
            self._predictor = predictor_of(
                self._base.model.config,
                config.model,
                "cuda" if device.type == "cuda" else "cpu",
                dtype=self._base.dtype,
                fused_attention=device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0),
            )
        return self._predictor.predict(config, batch)

    def measure(self, slot: Slot, batch: PackedBatch) -> TrialMemory:
        """Make one step of a slot, which changes it, and count.

        Raises:
            RuntimeError: the device has no room for it (`memory.is_out_of_memory`).
        """
        between = partial(self._beat, Activity(f"measuring the memory of trial {slot.number}"))
        between()
        predicted = self.predict(slot.config, batch)
        layout = self._model.layout(batch, [slot])
        device = self._base.device
        if device.type != "cuda":
            return TrialMemory(predicted, count_step(self._model, self._base.model, slot, layout, between=between))
        if not self._is_warm:  # cuBLAS takes its workspaces from torch in the first step, and keeps them
            count_step(self._model, self._base.model, slot, layout)
            self._is_warm = True
        before = torch.cuda.memory_stats(device)
        torch.cuda.reset_peak_memory_stats(device)
        live = count_step(self._model, self._base.model, slot, layout, between=between)
        return TrialMemory(predicted, live, **handed_out(before, torch.cuda.memory_stats(device), live))


def handed_out(before: Mapping[str, int], after: Mapping[str, int], live: LiveBytes) -> dict[str, int]:
    """What torch's CUDA allocator handed out for the base and one trial, at the peak of the trial's step.

    What else there was before the step, of other trials or of cuBLAS, is not the trial's.

    Args:
        before: `torch.cuda.memory_stats` before the step, when all that the trial keeps was there.
        after: The same after it, the peaks counted from the beginning of the step.
        live: The count of the step.

    Returns:
        `allocated`, in whole blocks of the allocator, and `requested`, the bytes of the tensors in them.
    """
    kept = {"allocated": live.resident, "requested": live.resident - live.resident_rounding}
    return {
        name: own + after[f"{name}_bytes.all.peak"] - before[f"{name}_bytes.all.current"] for name, own in kept.items()
    }
