"""What a verdict is: the configurations, their differences from the best, and the decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.analysis.paired import Evidence
    from lora_lab.analysis.replicates import Noise
    from lora_lab.study.results import TrialState
    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.sweep import Cost


LESS_TIME = 0.95
"""Less than this share of the other's training time is cheaper; more is within its jitter."""


Decision = Literal["best", "equivalent", "worse", "undecided", "costlier", "not tested"]
"""What the test says of a configuration: as good as the best (`equivalent`), worse than it by the margin or more
(`worse`), or neither (`undecided`); there is nothing to test for a `costlier` one, nor without replicates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A configuration as the verdict sees it."""

    number: int
    """Of its trial in the search; of several seeds, of the one with the lowest loss."""
    config: TrialConfig
    value: float
    """Nats per token: the mean over the retrainings with fresh seeds; without any, over its seeds in the search."""
    search_value: float
    """Nats per token of that trial in the search; as one picked from many it flatters the best."""
    runs: int
    """Trainings behind `value`."""
    retrainings: int
    """Retrainings with a value."""
    lost_retrainings: int
    """Retrainings, or seeds where there are none, that diverged, failed or were stopped."""
    spread: float | None
    """Standard deviation over at least two trainings, in nats."""
    trainable_params: float
    """Infinite where it is not known; so are the next two."""
    peak_memory_bytes: float
    train_seconds: float
    cost_metric: Cost
    """What the study calls cheap, `verdict.cost`."""

    @property
    def cost(self) -> tuple[float, float, float, int]:
        """What orders configurations by their cost: that of the study, trained parameters, training time, number."""
        costs: dict[Cost, float] = {
            "trainable_params": self.trainable_params,
            "peak_memory_bytes": self.peak_memory_bytes,
            "train_seconds": self.train_seconds,
        }
        return costs[self.cost_metric], self.trainable_params, self.train_seconds, self.number

    def is_cheaper_than(self, other: Standing) -> bool:
        """Whether it costs less; training time, which jitters, only where it is clearly less."""
        if self.cost_metric != "train_seconds" and self.cost[:2] != other.cost[:2]:
            return self.cost[:2] < other.cost[:2]
        return self.train_seconds < LESS_TIME * other.train_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRow:
    """One configuration against the best one, in nats per token."""

    standing: Standing
    value_interval: tuple[float, float] | None
    """95% interval of its value by the noise floor."""
    estimate: float
    """Its value minus the best one's, over common seeds where there are any; 0 for the best."""
    interval: tuple[float, float] | None
    """95%, two-sided, of `estimate`; None for a single run, unless single runs are compared over examples."""
    evidence: Evidence | None
    """What `interval` rests on."""
    p: float | None
    """One-sided, against "worse than the best by the margin or more"; None: not tested."""
    corrected_p: float | None
    """Holm-corrected over all configurations that were tested."""
    within_margin: bool
    """Whether the estimate lies within the margin, which alone proves nothing."""
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the trials say about the question, and how sure that is."""

    metric: str
    base_loss: float
    """The bare base, nats per token."""
    margin_share: float
    states: Mapping[TrialState, int]
    """Search trials by state."""
    retrained: int
    """Retrainings with fresh seeds, whatever became of them."""
    best: Standing | None
    margin: float
    """Nats above the best within which a configuration is a tie; 0 where nothing beats the base."""
    equivalent: tuple[Standing, ...]
    """The tie, cheapest first; the best is one of them."""
    noise: Noise | None
    """None: no noise floor was measured."""
    tested: bool
    """Whether the tie rests on a test; else on single runs within the margin."""
    rows: tuple[VerdictRow, ...]
    """The best, then the others by cost: all that were trained at least twice, and single runs within the margin."""
    held_out_value: float | None
    """What the choice of the best is worth on a seed that did not make it; None where fresh seeds say it already."""

    @property
    def cheapest(self) -> Standing | None:
        """The cheapest configuration that ties with the best: the recommended one."""
        return self.equivalent[0] if self.equivalent else None

    @property
    def gain(self) -> float:
        """Nats by which the best is below the bare base; 0 or less where nothing helped."""
        return self.base_loss - self.best.value if self.best else 0.0

    @property
    def helped(self) -> bool:
        """Whether any configuration is better than the bare base."""
        return self.gain > 0
