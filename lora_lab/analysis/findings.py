"""What a verdict is: the configurations, their differences from the best, and the decisions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_lab.study.measures import TRAIN_SECONDS, price, tie_width

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.analysis.noise import Noise
    from lora_lab.analysis.paired import Difference, Evidence
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialState
    from lora_lab.study.settings import TrialConfig


Role = Literal["best", "recommended"]
"""What a verdict calls a trial that it chooses."""
LESS_TIME = 0.95
"""Less than this share of the other's training time is cheaper; more is within its jitter."""


Decision = Literal["best", "equivalent", "worse", "undecided", "costlier", "not tested"]
"""What the test says of a configuration: as good as the best (`equivalent`), worse than it by the margin or more
(`worse`), or neither (`undecided`); there is nothing to test for a `costlier` one, nor without replicates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A configuration as the verdict sees it."""

    number: int
    """Of its trial in the search; of several seeds, of the best one."""
    config: TrialConfig
    label: str
    """The configuration in a few words."""
    value: float
    """The mean over the retrainings with fresh seeds; without any, over its seeds in the search."""
    search_value: float
    """Of that trial in the search; as one picked from many it flatters the best."""
    runs: int
    """Trainings behind `value`."""
    retrainings: int
    """Retrainings with a value."""
    lost_retrainings: int
    """Retrainings, or seeds where there are none, that diverged, failed or were stopped."""
    spread: float | None
    """Standard deviation over at least two trainings."""
    costs: Mapping[str, float]
    """What it costs by every measure of cost that is known, means over the trainings behind `value`."""
    cost_metric: str
    """What the study calls cheap, `verdict.cost`."""

    @property
    def cost(self) -> tuple[float, ...]:
        """What orders configurations by their cost."""
        return price(self.costs, self.cost_metric, self.number)

    def is_cheaper_than(self, other: Standing) -> bool:
        """Whether it costs less; training time, which jitters, only where it is clearly less."""
        if self.cost_metric != TRAIN_SECONDS.name and self.cost[:2] != other.cost[:2]:
            return self.cost[:2] < other.cost[:2]
        seconds, others = (one.costs.get(TRAIN_SECONDS.name, math.inf) for one in (self, other))
        return seconds < LESS_TIME * others


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRow:
    """One configuration against the best one."""

    standing: Standing
    value_interval: tuple[float, float] | None
    """95% interval of its value by the noise floor."""
    estimate: float
    """By how much it is worse than the best one, over common seeds where there are any; 0 for the best."""
    apart: Difference | None
    """What `estimate` rests on; None for a single run, unless single runs are compared over examples."""
    p: float | None
    """One-sided, against "worse than the best by the margin or more"; None: not tested."""
    corrected_p: float | None
    """Holm-corrected over all configurations that were tested."""
    within_margin: bool
    """Whether the estimate lies within the margin, which alone proves nothing."""
    decision: Decision

    @property
    def interval(self) -> tuple[float, float] | None:
        """95%, two-sided, of `estimate`."""
        return self.apart.interval() if self.apart else None

    @property
    def evidence(self) -> Evidence | None:
        """What `interval` rests on."""
        return self.apart.evidence if self.apart else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the trials say about the question, and how sure that is."""

    measure: Measure
    """What is judged; losses and their differences are nats per token, scores and theirs are points."""
    base_value: float
    """Of the bare base."""
    margin_share: float
    """Of the gain; of no account where there is an `absolute_margin`."""
    absolute_margin: float | None
    states: Mapping[TrialState, int]
    """Search trials by state."""
    retrained: int
    """Retrainings with fresh seeds, whatever became of them."""
    best: Standing | None
    margin: float
    """How much worse than the best a configuration of the tie may be; 0 for a share where nothing beats the base."""
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
        """By how much the best is better than the bare base; 0 or less where nothing helped."""
        return self.measure.gain_over(self.base_value, self.best.value) if self.best else 0.0

    @property
    def compared(self) -> list[Standing]:
        """The best configuration, the recommended one, then the others in `rows`, the better ones first."""
        chosen = [standing for standing in (self.best, self.cheapest) if standing is not None]
        others = sorted((row.standing for row in self.rows), key=lambda one: self.measure.as_loss(one.value))
        return list({standing.number: standing for standing in (*chosen, *others)}.values())

    def roles(self, number: int) -> tuple[Role, ...]:
        """What the verdict calls the trial of this number: best, recommended, both, or neither."""
        named: tuple[tuple[Role, Standing | None], ...] = (("best", self.best), ("recommended", self.cheapest))
        return tuple(role for role, standing in named if standing is not None and standing.number == number)

    def tie_width(self, best: float) -> float:
        """The margin below another value as the best, such as that of one target set."""
        return tie_width(self.margin_share, self.absolute_margin, self.measure.gain_over(self.base_value, best))

    @property
    def helped(self) -> bool:
        """Whether any configuration is better than the bare base."""
        return self.gain > 0
