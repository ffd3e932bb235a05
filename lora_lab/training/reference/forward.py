"""The reference model as `evaluation` sees it: token losses of one trial, or of the bare base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.training.batch import TokenLosses
from lora_lab.training.reference.losses import label_losses
from lora_lab.training.reference.model import set_mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.training.base.loading import Base
    from lora_lab.training.batch import PackedBatch
    from lora_lab.training.reference.trial import ReferenceTrial


@dataclass(frozen=True, slots=True)
class ReferenceModel:
    """Computes the losses of one trial, or of the bare base, for `evaluation.evaluate`."""

    base: Base

    def token_losses(self, batch: PackedBatch, slots: Sequence[ReferenceTrial | None]) -> TokenLosses:
        """Losses of all label tokens of the one trial in `slots`; None is the bare base."""
        [trial] = slots
        if trial is not None:
            set_mode(trial.model, training=False)
        nll, row_counts = label_losses(self.base, self.base.model if trial is None else trial.model, batch)
        return TokenLosses(nll, row_counts.cpu())
