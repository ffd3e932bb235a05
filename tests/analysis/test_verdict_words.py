from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from analysis.simulated import BASE_LOSS, results, trial

from lora_lab.analysis.paired import ExampleLosses
from lora_lab.analysis.verdict import decide
from lora_lab.analysis.verdict_words import facts, sentences
from lora_lab.analysis.wording import interval_text, measure_text, nats, p_text
from lora_lab.study.measures import MEASURES

if TYPE_CHECKING:
    from lora_lab.analysis.findings import Findings, VerdictRow
    from lora_lab.study.results import TrialResult

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?")


def cells(row: VerdictRow) -> str:
    """What a table shows of a row."""
    standing = row.standing
    shown = [str(standing.number), standing.label, nats(standing.value), str(standing.runs)]
    shown += [measure_text(MEASURES[name], value) for name, value in standing.costs.items()]
    shown += [str(standing.lost_retrainings), str(standing.runs + standing.lost_retrainings)]
    shown += ["" if standing.spread is None else nats(standing.spread), nats(abs(row.estimate))]
    shown += [interval_text(interval) for interval in (row.interval, row.value_interval) if interval]
    shown += [p_text(p) for p in (row.p, row.corrected_p) if p is not None]
    return " ".join(shown)


def numbers_without_a_place(findings: Findings) -> set[str]:
    known = " ".join([*map(cells, findings.rows), *(fact.text for fact in facts(findings))])
    in_tables = set(NUMBER.findall(known))
    said = " ".join(sentences(findings)).replace("`confirm: {top: 3, seeds: 3}`", "").replace("95% interval", "")
    counted = {str(len(findings.rows) - 1 - offset) for offset in range(len(findings.rows))}
    return {number.rstrip(".") for number in NUMBER.findall(said)} - in_tables - counted


def replicated(r: int, losses: list[float], first: int, **changes: Any) -> list[TrialResult]:
    return [trial(first + seed, loss, r=r, seed=seed, **changes) for seed, loss in enumerate(losses)]


STUDIES: dict[str, list[TrialResult]] = {
    "simulated": results(),
    "single runs": [trial(0, 4.0, r=64), trial(1, 4.009, r=8), trial(2, 4.0095, r=4), trial(3, 4.02, r=2)],
    "faster": [trial(0, 4.0, metrics={"train_seconds": 200.0}), trial(1, 4.001, learning_rate=1e-3)],
    "equivalent": [
        *replicated(64, [4.000, 4.010, 3.990, 4.005], 0),
        *replicated(8, [4.001, 4.010, 3.992, 4.007], 10),
        trial(14, state="diverged", r=8, seed=4),
    ],
    "undecided": [*replicated(64, [4.00, 4.02, 3.99], 0), *replicated(8, [4.01, 3.99, 4.02], 10)],
    "nothing helped": [trial(0, 5.2, r=64), trial(1, 5.21, r=4)],
    "nothing finished": [trial(0, state="diverged"), trial(1, state="out_of_memory")],
}


@pytest.mark.parametrize("name", STUDIES)
def test_every_number_of_a_sentence_stands_in_a_table(name: str) -> None:
    findings = decide(STUDIES[name], BASE_LOSS if name == "simulated" else 5.0, margin=0.01)

    assert numbers_without_a_place(findings) == set()


def test_lost_seeds_are_named() -> None:
    words = " ".join(sentences(decide(STUDIES["equivalent"], 5.0, 0.01)))

    assert "1 of 5 seeds of trial 12 did not reach the end" in words


def test_what_would_decide_is_said() -> None:
    findings = decide(STUDIES["undecided"], 5.0, 0.03)

    assert any(row.decision == "undecided" for row in findings.rows)
    assert re.search(
        r"If that is the true distance, about \d+ seeds of each likely show it", " ".join(sentences(findings))
    )


def undecided(distance: float, *, margin: float, taste: float) -> Findings:
    """Three seeds of two ranks on 100 examples, which the smaller one finds harder or easier by `taste`."""
    rng = np.random.default_rng(3)
    tokens, losses, trials = np.full(100, 50), {}, []
    likes = rng.normal(0, taste, 100)
    for r, above in ((8, distance + likes - likes.mean()), (64, np.zeros(100))):
        for seed, luck in enumerate((0.000, 0.004, -0.004) if r == 8 else (0.002, -0.002, 0.000)):
            nll = (4.0 + above + luck) * tokens
            trials.append(trial(100 * r + seed, float(nll.sum() / tokens.sum()), r=r, seed=seed))
            losses[100 * r + seed] = ExampleLosses(nll, tokens)
    return decide(trials, 5.0, margin, losses=losses)


def test_no_number_of_seeds_is_promised_where_the_examples_alone_are_too_uncertain() -> None:
    findings = undecided(0.018, margin=0.025, taste=0.05)

    words = " ".join(sentences(findings))
    assert [row.decision for row in findings.rows] == ["best", "undecided"]
    assert findings.rows[1].evidence == "seeds and examples"
    assert re.search(
        r"no number of seeds is enough on these 100 evaluation examples, but about \d+ evaluation examples at \d+",
        words,
    )
    assert numbers_without_a_place(findings) == set()


def test_what_seeds_can_settle_is_said_beside_what_examples_can() -> None:
    findings = undecided(0.018, margin=0.025, taste=0.02)

    assert re.search(
        r"about \d+ seeds of each or about \d+ evaluation examples at 5 seeds", " ".join(sentences(findings))
    )
    assert numbers_without_a_place(findings) == set()


@pytest.mark.parametrize(("distance", "said"), [(0.0251, "So near to the margin"), (0.034, "outside the margin")])
def test_an_estimate_a_little_beyond_the_margin_is_not_called_outside(distance: float, said: str) -> None:
    """Outside is what lies beyond the margin by more than its standard error."""
    findings = undecided(distance, margin=0.025, taste=0.035)

    assert [row.decision for row in findings.rows] == ["best", "undecided"]
    assert said in " ".join(sentences(findings))


def test_the_luck_of_the_search_is_told_beyond_one_standard_deviation_only() -> None:
    def words(searched: float) -> str:
        fresh = [trial(1 + i, 4.0 + 0.01 * i, r=8, replicate=i + 1, confirms=0) for i in range(3)]
        return " ".join(sentences(decide([trial(0, searched, r=8), *fresh], 5.0, 0.01)))

    assert "looks better than it is" in words(3.98)
    assert "looks better than it is" not in words(4.005)
