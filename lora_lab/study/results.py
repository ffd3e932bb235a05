"""One row per trial: what the storage knows, as the analysis, the report and the exporters read it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lora_lab.study.measures import BEST_EVALUATION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.study.engines import EngineChoice
    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.sweep import Value

TrialState = Literal["running", "complete", "pruned", "diverged", "out_of_memory", "failed", "shared"]
FINISHED_WITH_VALUE: tuple[TrialState, ...] = ("complete", "shared")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """A trial as it stands in the storage."""

    number: int
    state: TrialState
    params: Mapping[str, Value]
    """The values that the sampler chose, by parameter name."""
    config: TrialConfig
    engine: EngineChoice
    """What trains or trained it, and why; for `shared`, what trained `source`."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Final figures by their MLflow names; empty for a trial that has none."""
    curve: Mapping[int, float] = field(default_factory=dict)
    """eval_loss by evaluation: 1, 2, ... are the epochs, unless `eval_steps` is set."""
    source: int | None = None
    """For `shared`: the number of the trial whose result this is."""
    reason: str = ""
    """For pruned, diverged, out_of_memory and failed: why, in words. For others: why they stopped early, and which
    adapter they left, if not their last one."""
    replicate: int = 0
    """0 for the search; 1, 2, ... for retrainings with fresh seeds (`confirm`)."""
    confirms: int | None = None
    """For a replicate: the number of the trial that it repeats."""

    @property
    def eval_loss(self) -> float | None:
        """Final held-out loss in nats per token, None for a trial that has none."""
        return self.metrics.get("eval_loss")

    @property
    def evaluation(self) -> int:
        """Number of the evaluation whose adapter and figures the trial has: the newest, or its best; 0 before it."""
        return int(self.metrics.get(BEST_EVALUATION.name, max(self.curve, default=0)))

    @property
    def stopped_early(self) -> bool:
        """Whether it ended before its last step for want of better evaluations, as a longer run would have."""
        training = self.config.training
        if training.max_steps is not None:
            return self.metrics.get("steps", math.inf) < training.max_steps
        return self.metrics.get("epochs", math.inf) < training.num_train_epochs

    @property
    def has_value(self) -> bool:
        """Whether the trial reached its end."""
        return self.state in FINISHED_WITH_VALUE
