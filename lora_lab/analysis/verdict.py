"""The verdict: the best trial, what ties with it, the cheapest of those, and what is not known."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.analysis.selection import finished, measured, retrainings, search_trials
from lora_lab.analysis.wording import config_label, count_text, duration_text, nats, plural
from lora_lab.study.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.study.results import TrialResult, TrialState
    from lora_lab.study.settings import TrialConfig

LOSSES = ("eval_loss", "forgetting")
STATE_WORDS: dict[TrialState, str] = {
    "complete": "complete",
    "shared": "read off another trial",
    "pruned": "pruned",
    "diverged": "diverged",
    "out_of_memory": "out of memory",
    "failed": "failed",
    "running": "not finished",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A configuration as the verdict sees it."""

    number: int
    """Of its trial in the search."""
    config: TrialConfig
    value: float
    """Nats per token: the mean over the retrainings with fresh seeds; without any, the single run."""
    search_value: float
    """Nats per token of the run in the search; as one picked from many it flatters the best."""
    retrainings: int
    """Retrainings with a value."""
    lost_retrainings: int
    """Retrainings that diverged, failed or were stopped."""
    spread: float | None
    """Standard deviation over at least two retrainings, in nats."""
    trainable_params: float
    """Infinite where it is not known."""
    train_seconds: float

    @property
    def cost(self) -> tuple[float, float, int]:
        """What makes a configuration cheaper, in order: trained parameters, training time, number."""
        return self.trainable_params, self.train_seconds, self.number


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Spread between trainings of one configuration under different seeds, pooled over configurations."""

    sd: float
    """Nats."""
    degrees_of_freedom: int
    configurations: int

    @property
    def smallest_real_difference(self) -> float:
        """Nats by which two single runs must differ so that chance alone does so in 5% of cases at most."""
        from scipy.special import stdtrit  # type: ignore[import-untyped]  # half a second: only where needed

        return float(stdtrit(self.degrees_of_freedom, 0.975)) * self.sd * math.sqrt(2)


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


def _standing(result: TrialResult, value: float, repeats: Sequence[TrialResult], metric: str) -> Standing:
    fresh = [loss for loss in (measured(repeat, metric) for repeat in repeats) if loss is not None]
    over = sum(repeat.state != "running" for repeat in repeats)
    return Standing(
        number=result.number,
        config=result.config,
        value=statistics.fmean(fresh) if fresh else value,
        search_value=value,
        retrainings=len(fresh),
        lost_retrainings=over - len(fresh),
        spread=statistics.stdev(fresh) if len(fresh) > 1 else None,
        trainable_params=result.metrics.get("trainable_params", math.inf),
        train_seconds=result.metrics.get("train_seconds", math.inf),
    )


def _pooled(standings: Sequence[Standing]) -> Noise | None:
    repeated = [(s.spread, s.retrainings - 1) for s in standings if s.spread is not None]
    freedom = sum(weight for _, weight in repeated)
    if not freedom:
        return None
    variance = sum(spread**2 * weight for spread, weight in repeated) / freedom
    return Noise(sd=math.sqrt(variance), degrees_of_freedom=freedom, configurations=len(repeated))


def decide(results: Sequence[TrialResult], base_loss: float, margin: float, metric: str = "eval_loss") -> Findings:
    """Find the best configuration and the cheapest one that ties with it.

    Where finalists were retrained, only they can be the best, by the mean of their fresh seeds: a single run
    picked from many looks better than it is. A configuration ties when its value (that mean, or its single
    run) is at most `margin` times the best one's gain over `base_loss` above it.

    Args:
        results: every trial of the study, retrainings included.
        base_loss: the metric of the bare base, in nats per token (0 for `forgetting`).
        margin: share of the gain over the base, `verdict.margin` of the study file.
        metric: `eval_loss` or `forgetting`; lower is better.

    Raises:
        InputError: `metric` is not a loss, or `base_loss` is not finite.

    """
    if metric not in LOSSES:
        raise InputError(f"the verdict needs a loss ({' or '.join(LOSSES)}), but metric is {metric}")
    if not math.isfinite(base_loss):
        raise InputError(f"base_loss must be finite, but is {base_loss}: the bare base cannot be evaluated")
    standings = [
        _standing(result, value, retrainings(results, result.number), metric)
        for result, value in finished(results, metric)
    ]
    candidates = [standing for standing in standings if standing.retrainings] or standings
    best = min(candidates, key=lambda standing: (standing.value, standing.cost), default=None)
    width = max(0.0, margin * (base_loss - best.value)) if best else 0.0
    tied = [standing for standing in standings if best and standing.value <= best.value + width]
    return Findings(
        metric=metric,
        base_loss=base_loss,
        margin_share=margin,
        states=Counter(result.state for result in search_trials(results)),
        retrained=sum(result.replicate > 0 for result in results),
        best=best,
        margin=width,
        equivalent=tuple(sorted(tied, key=lambda standing: standing.cost)),
        noise=_pooled(standings),
    )


def sentences(findings: Findings) -> list[str]:
    """The verdict in plain words with its numbers, most important first; says what is not known."""
    if findings.best is None:
        return [_count_sentence(findings), "No trial finished, so there is no verdict.", *_way_out(findings)]
    verdict = [_best_sentence(findings, findings.best)]
    if findings.helped:
        verdict.append(_cheapest_sentence(findings, findings.best, findings.equivalent[0]))
    else:
        verdict.append(
            "Nothing helped: no trial is better than the bare base. Look at learning_rate, the number of "
            "epochs and the data before comparing ranks."
        )
    return [*verdict, *_retraining_sentences(findings), _noise_sentence(findings), _count_sentence(findings)]


def _count_sentence(findings: Findings) -> str:
    parts = [f"{count} {STATE_WORDS[state]}" for state in STATE_WORDS if (count := findings.states.get(state, 0))]
    extra = f", and {plural(findings.retrained, 'retraining')} with fresh seeds" if findings.retrained else ""
    return f"{plural(sum(findings.states.values()), 'trial')}: {', '.join(parts) or 'none started'}{extra}."


def _way_out(findings: Findings) -> list[str]:
    ways: dict[TrialState, str] = {
        "diverged": "lower learning_rate (or its max)",
        "out_of_memory": "lower per_device_train_batch_size or max_length",
        "failed": "read the reasons in the table of trials",
        "running": "run the same command again to go on",
    }
    said = [f"{STATE_WORDS[state]}: {way}" for state, way in ways.items() if findings.states.get(state)]
    return [f"What to do: {'; '.join(said)}."] if said else []


def _best_sentence(findings: Findings, best: Standing) -> str:
    spread = "" if best.spread is None else f" ± {nats(best.spread)}"
    how = f"mean of {plural(best.retrainings, 'retraining')}{spread}" if best.retrainings else "one run"
    side = "below" if findings.gain >= 0 else "above"
    return (
        f"Best: trial {best.number} ({config_label(best.config)}) reaches {findings.metric} "
        f"{nats(best.value)} nats per token ({how}), {nats(abs(findings.gain))} {side} the bare base "
        f"({nats(findings.base_loss)})."
    )


def _cheapest_sentence(findings: Findings, best: Standing, cheapest: Standing) -> str:
    within = f"within {100 * findings.margin_share:.3g}% of that gain ({nats(findings.margin)} nats)"
    if cheapest is best:
        return f"Nothing cheaper comes {within}: it is also the cheapest choice."
    others = len(findings.equivalent) - 1
    return (
        f"{plural(others, 'other trial')} {'comes' if others == 1 else 'come'} {within}. "
        f"The cheapest choice is trial {cheapest.number} ({config_label(cheapest.config)}): "
        f"{findings.metric} {nats(cheapest.value)}, {_cost_comparison(cheapest, best)}."
    )


def _cost_comparison(cheap: Standing, best: Standing) -> str:
    if cheap.trainable_params < best.trainable_params < math.inf:
        few, many = count_text(cheap.trainable_params), count_text(best.trainable_params)
        times = best.trainable_params / cheap.trainable_params
        return f"{few} trained parameters instead of {many} ({times:.3g} times fewer)"
    if cheap.train_seconds < best.train_seconds < math.inf:
        short, long = duration_text(cheap.train_seconds), duration_text(best.train_seconds)
        return f"{short} of training instead of {long}"
    return "at the same cost"


def _retraining_sentences(findings: Findings) -> list[str]:
    best, cheapest = findings.best, findings.cheapest
    said: list[str] = []
    if best and best.retrainings and best.value > best.search_value:
        flattered = nats(best.search_value)
        said.append(
            f"In the search, trial {best.number} had said {flattered}: "
            "the best of many single runs looks better than it is."
        )
    for standing in dict.fromkeys((best, cheapest)):
        if standing and standing.lost_retrainings:
            total = standing.retrainings + standing.lost_retrainings
            lost = f"{standing.lost_retrainings} of {plural(total, 'retraining')}"
            said.append(f"{lost} of trial {standing.number} did not reach the end.")
    if best and cheapest and best.retrainings and not cheapest.retrainings:
        said.append(f"Trial {cheapest.number} was run once; it is not confirmed by a retraining.")
    return said


def _noise_sentence(findings: Findings) -> str:
    margin = nats(findings.margin)
    if findings.noise is None:
        each = "at most one retraining each" if findings.retrained else "one run each"
        return (
            f"No noise floor was measured ({each}): the order of trials that differ by less than the margin "
            f"({margin} nats) is not known to be real. `confirm: {{top: 3, seeds: 3}}` measures it."
        )
    noise, limit = findings.noise, findings.noise.smallest_real_difference
    words = (
        f"Seeds alone spread {findings.metric} by {nats(noise.sd)} nats (standard deviation, "
        f"{plural(noise.configurations, 'configuration')} retrained): two single runs closer than "
        f"{nats(limit)} nats are not known to differ."
    )
    if limit > findings.margin:
        words += f" That is more than the margin ({margin} nats), so the tie is wider than it looks."
    return words
