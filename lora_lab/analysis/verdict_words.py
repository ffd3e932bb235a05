"""The verdict in plain words, and every number that it says as a table of facts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lora_lab.analysis.sample_size import what_decides
from lora_lab.analysis.wording import (
    distance_text,
    measure_interval,
    measure_text,
    p_text,
    plural,
    value_and_unit,
)
from lora_lab.study.measures import MEASURES, TIE_BREAKERS, TRAINABLE_PARAMS

if TYPE_CHECKING:
    from lora_lab.analysis.findings import Findings, Standing, VerdictRow
    from lora_lab.analysis.noise import Noise
    from lora_lab.analysis.sample_size import Needed
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialState

STATE_WORDS: dict[TrialState, str] = {
    "complete": "complete",
    "shared": "read off another trial",
    "pruned": "pruned",
    "diverged": "diverged",
    "out_of_memory": "out of memory",
    "failed": "failed",
    "running": "not finished",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """A number that the verdict rests on, and what it is."""

    name: str
    text: str
    """With its unit."""


def sentences(findings: Findings) -> list[str]:
    """The verdict in plain words with its numbers, most important first; says what is not known."""
    if findings.best is None:
        return [_count_sentence(findings), "No trial finished, so there is no verdict.", *_way_out(findings)]
    verdict = [_best_sentence(findings, findings.best)]
    if findings.helped:
        verdict += _choice_sentences(findings, findings.best, findings.equivalent[0])
    else:
        verdict.append(
            "Nothing helped: no trial is better than the bare base. Look at learning_rate, the number of "
            "epochs and the data before comparing ranks."
        )
    return [*verdict, *_retraining_sentences(findings), *_noise_sentences(findings), _count_sentence(findings)]


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


def _runs_text(measure: Measure, standing: Standing) -> str:
    if standing.runs == 1:
        return "one retraining" if standing.retrainings else "one run"
    spread = "" if standing.spread is None else f" ± {measure_text(measure, standing.spread)}"
    return f"mean of {plural(standing.runs, 'retraining' if standing.retrainings else 'seed')}{spread}"


def _best_sentence(findings: Findings, best: Standing) -> str:
    measure, gain = findings.measure, abs(findings.gain)
    return (
        f"Best: trial {best.number} ({best.label}) reaches {measure.label} "
        f"{value_and_unit(measure, best.value)} ({_runs_text(measure, best)}), {measure_text(measure, gain)} "
        f"{_gain_side(findings)} the bare base ({measure_text(measure, findings.base_value)})."
    )


def _gain_side(findings: Findings) -> str:
    return findings.measure.better if findings.gain >= 0 else findings.measure.worse


def _share_text(findings: Findings) -> str:
    return f"{100 * findings.margin_share:.3g}%"


def _choice_sentences(findings: Findings, best: Standing, cheapest: Standing) -> list[str]:
    if not findings.tested:
        return [_untested_choice(findings, best, cheapest)]
    said = [_tested_choice(findings, best, cheapest)]
    undecided = _undecided(findings)
    if undecided:
        closest = undecided[0]
        also = f" (and {plural(len(undecided) - 1, 'other')})" if len(undecided) > 1 else ""
        said.append(
            f"Not known: cheaper trial {closest.standing.number}{also} is "
            f"{_distance(findings.measure, closest)} the best, so it may or may not be as good. "
            f"{_needed_text(findings, closest)}"
        )
    single = [row for row in findings.rows if row.decision == "not tested" and row.standing.is_cheaper_than(cheapest)]
    if single:
        names = ", ".join(str(row.standing.number) for row in single[:3]) + (", …" if len(single) > 3 else "")
        said.append(
            f"Cheaper and within the margin in a single run, which proves nothing: trial {names}. "
            "`confirm` with a larger `top` retrains it."
        )
    return said


def _undecided(findings: Findings) -> list[VerdictRow]:
    """What is cheaper than the choice and neither shown to tie nor to be worse; the closest to the best first."""
    assert findings.cheapest is not None
    limit = findings.cheapest.cost
    rows = [row for row in findings.rows if row.decision == "undecided" and row.standing.cost < limit]
    return sorted(rows, key=lambda row: row.estimate)


def _needed_text(findings: Findings, closest: VerdictRow) -> str:
    """What would settle the closest open comparison."""
    apart, needed = closest.apart, _needed(findings)
    assert apart is not None, "what is undecided was tested"
    if closest.estimate - findings.margin > apart.se:
        return f"That is outside the margin of {_width(findings)}; more seeds would likely show it worse."
    if needed is None or not needed.found:
        what = "seeds and evaluation examples" if apart.examples else "seeds"
        return f"So near to the margin of {_width(findings)}, no reasonable number of {what} decides."
    ways = []
    if needed.seeds is not None:
        ways.append(f"about {needed.seeds} seeds of each")
    if needed.examples is not None:
        ways.append(f"about {needed.examples} evaluation examples at {needed.examples_seeds} seeds of each")
    enough = (
        f"no number of seeds is enough on these {apart.examples} evaluation examples, but {ways[0]} likely show"
        if needed.seeds is None
        else f"{' or '.join(ways)} likely show"
    )
    return f"If that is the true distance, {enough} it to be within the margin."


def _needed(findings: Findings) -> Needed | None:
    """What would settle the closest undecided configuration, if its distance is as estimated; None: nothing is open."""
    undecided = _undecided(findings)
    if not undecided or undecided[0].apart is None:
        return None
    still_open = sum(row.p is not None and row.decision != "equivalent" for row in findings.rows)
    runs = undecided[0].standing.runs
    return what_decides(undecided[0].apart, findings.margin, runs=runs, comparisons=still_open)


def _distance(measure: Measure, row: VerdictRow) -> str:
    side = measure.worse if row.estimate >= 0 else measure.better
    interval = f" (95% interval {measure_interval(measure, row.interval)})" if row.interval else ""
    return f"{distance_text(measure, abs(row.estimate))}{interval} {side}"


def _width(findings: Findings) -> str:
    return distance_text(findings.measure, findings.margin)


def _declared(findings: Findings) -> str:
    """The margin as the study declares it."""
    share = "" if findings.absolute_margin is not None else f", {_share_text(findings)} of that gain"
    return f"the margin of {_width(findings)}{share}"


def _tested_choice(findings: Findings, best: Standing, cheapest: Standing) -> str:
    measure, margin = findings.measure, _declared(findings)
    if cheapest.number == best.number:
        if not any(row.corrected_p is not None for row in findings.rows):
            return f"No cheaper configuration was trained with several seeds, so none is tested against {margin}."
        return f"No cheaper configuration is shown to be as good within {margin}: the best is also the choice."
    row = next(row for row in findings.rows if row.standing.number == cheapest.number)
    assert row.corrected_p is not None
    return (
        f"As good and cheaper: trial {cheapest.number} ({cheapest.label}) is "
        f"{_distance(measure, row)} the best, shown to be within {margin} (one-sided paired test, Holm-corrected p "
        f"{p_text(row.corrected_p)}): "
        f"{measure.label} {measure_text(measure, cheapest.value)}, {_cost_comparison(cheapest, best)}."
    )


def _untested_choice(findings: Findings, best: Standing, cheapest: Standing) -> str:
    measure, share = findings.measure, f"{_share_text(findings)} of that gain ({_width(findings)})"
    within = f"within {share if findings.absolute_margin is None else _width(findings)}"
    if cheapest.number == best.number:
        return f"Nothing cheaper comes {within}: it is also the cheapest choice."
    others = len(findings.equivalent) - 1
    return (
        f"{plural(others, 'other trial')} {'comes' if others == 1 else 'come'} {within}. "
        f"The cheapest choice is trial {cheapest.number} ({cheapest.label}): "
        f"{measure.label} {measure_text(measure, cheapest.value)}, {_cost_comparison(cheapest, best)}. "
        "This is not tested: it takes replicates."
    )


def _cost_comparison(cheap: Standing, best: Standing) -> str:
    for name in (cheap.cost_metric, *TIE_BREAKERS):
        measure, less, more = MEASURES[name], cheap.costs.get(name), best.costs.get(name)
        if less is None or more is None or less >= more:
            continue
        texts = measure_text(measure, less), measure_text(measure, more)
        if measure.style == "count":
            return f"{texts[0]} {measure.label} instead of {texts[1]} ({_times(more, less)} times fewer)"
        return f"{texts[0]} of {measure.label} instead of {texts[1]}"
    return "at the same cost"


def _times(more: float, less: float) -> str:
    return f"{more / less:.3g}"


def _flattered(findings: Findings, best: Standing) -> bool:
    """Whether the best one's run in the search was better than its retrainings by more than seeds differ."""
    curse = findings.measure.as_loss(best.value) - findings.measure.as_loss(best.search_value)
    return curse > (findings.noise.sd if findings.noise else 0.0)


def _retraining_sentences(findings: Findings) -> list[str]:
    best, cheapest = findings.best, findings.cheapest
    said: list[str] = []
    measure = findings.measure
    if best and best.retrainings and _flattered(findings, best):
        flattered = measure_text(measure, best.search_value)
        said.append(
            f"In the search, trial {best.number} had said {flattered}: "
            "the best of many single runs looks better than it is."
        )
    held_out = findings.held_out_value
    if best and held_out is not None and measure.as_loss(held_out) > measure.as_loss(best.value):
        said.append(
            f"On a seed that did not choose it, the best is worth {measure_text(measure, held_out)}: "
            "the best of many means looks better than it is."
        )
    for standing in {one.number: one for one in (best, cheapest) if one}.values():
        if standing.lost_retrainings:
            total = standing.runs + standing.lost_retrainings
            lost = f"{standing.lost_retrainings} of {plural(total, 'retraining' if standing.retrainings else 'seed')}"
            said.append(f"{lost} of trial {standing.number} did not reach the end.")
    if best and cheapest and best.retrainings and not cheapest.retrainings:
        said.append(f"Trial {cheapest.number} was run once; it is not confirmed by a retraining.")
    return said


def _noise_sentences(findings: Findings) -> list[str]:
    if findings.noise is None:
        each = "at most one retraining each" if findings.retrained else "one run each"
        return [
            (
                f"No noise floor was measured ({each}), so no difference is tested: the order of trials that differ by "
                f"less than the margin ({_width(findings)}) is not known to be real. `confirm: {{top: 3, seeds: 3}}` "
                "retrains the best; `seeds: 3` repeats every cell of a grid."
            )
        ]
    measure, noise = findings.measure, findings.noise
    limit, paired = noise.smallest_real_difference, noise.smallest_paired_difference
    words = (
        f"Seeds alone spread {measure.label} by {distance_text(measure, noise.sd)} (standard deviation, 95% interval "
        f"{measure_interval(measure, noise.interval)}, {plural(noise.configurations, 'configuration')} trained again): "
        f"two single runs of different seeds closer than {distance_text(measure, limit)} are not known to differ"
    )
    words += "." if paired is None else f", two of one seed closer than {distance_text(measure, paired)}."
    if (limit if paired is None else paired) > findings.margin:
        words += f" That is more than the margin ({_width(findings)}): single runs cannot settle a tie."
    return [words, *_unstable_sentences(measure, noise)]


def _unstable_sentences(measure: Measure, noise: Noise) -> list[str]:
    if not noise.unstable:
        return []
    names = ", ".join(f"trial {number} by {distance_text(measure, sd)}" for number, sd in noise.unstable.items())
    sentence = (
        f"Seeds spread {names}: more than the others by an F test, so this is kept out of the noise floor, and what is "
        "compared with such a trial rests on its own seeds alone."
    )
    return [sentence]


def _needed_facts(needed: Needed) -> list[Fact]:
    shows = "that likely show the closest undecided one to be within the margin"
    said = [Fact("evaluation examples behind the intervals", str(needed.present))] if needed.present else []
    if needed.seeds is not None:
        said.append(Fact(f"seeds of each {shows}", str(needed.seeds)))
    if needed.examples is not None:
        said.append(Fact(f"evaluation examples {shows}", str(needed.examples)))
        said.append(Fact("seeds of each that go with so many examples", str(needed.examples_seeds)))
    return said


def _named(what: str, unit: str) -> str:
    return f"{what}, {unit}" if unit else what


def facts(findings: Findings) -> list[Fact]:
    """Every number of the verdict's sentences that is not in the table of its rows."""
    measure, unit = findings.measure, findings.measure.distance_unit
    text = partial(measure_text, measure)
    states = [Fact(f"trials {STATE_WORDS[state]}", str(count)) for state, count in findings.states.items()]
    said = [
        Fact(_named(f"{measure.label} of the bare base", measure.unit), text(findings.base_value)),
        *([] if findings.absolute_margin is not None else [Fact("margin, share of the gain", _share_text(findings))]),
        Fact(f"margin, {unit}", text(findings.margin)),
        Fact("trials in the search", str(sum(findings.states.values()))),
        *states,
        Fact("retrainings with fresh seeds", str(findings.retrained)),
        Fact("level of the tests against the margin, all together", "5%"),
    ]
    best, cheapest = findings.best, findings.cheapest
    if best is not None:
        said.append(Fact(f"the best, {unit} {_gain_side(findings)} the bare base", text(abs(findings.gain))))
        said.append(Fact(_named("the best trial's own run in the search", measure.unit), text(best.search_value)))
    if best and cheapest:
        few, many = (one.costs.get(TRAINABLE_PARAMS.name) for one in (cheapest, best))
        if few is not None and many is not None and few < many:
            said.append(Fact(f"{TRAINABLE_PARAMS.label}, the best over the choice", _times(many, few)))
    if findings.held_out_value is not None:
        said.append(Fact("the choice of the best on a seed that did not make it", text(findings.held_out_value)))
    if cheapest is not None and (needed := _needed(findings)) is not None:
        said += _needed_facts(needed)
    if findings.noise is not None:
        noise = findings.noise
        said += [
            Fact(f"noise floor: standard deviation between seeds, {unit}", text(noise.sd)),
            Fact("noise floor, 95% interval", measure_interval(measure, noise.interval)),
            Fact("noise floor, configurations behind it", str(noise.configurations)),
            Fact("noise floor, degrees of freedom", str(noise.degrees_of_freedom)),
            Fact(f"smallest real difference of two single runs, {unit}", text(noise.smallest_real_difference)),
        ]
        if noise.paired_sd is not None and noise.smallest_paired_difference is not None:
            said.append(Fact(f"noise floor of paired differences (same seeds), {unit}", text(noise.paired_sd)))
            paired = text(noise.smallest_paired_difference)
            said.append(Fact(f"smallest real difference of two single runs of one seed, {unit}", paired))
        said += [
            Fact(f"standard deviation between seeds of trial {number}, kept out of the noise floor, {unit}", text(sd))
            for number, sd in noise.unstable.items()
        ]
    return said
