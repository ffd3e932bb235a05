"""The confound audit: what in a study's design or outcome makes its comparison say less than it seems to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from lora_lab.analysis.audit_design import AuditNote, Kind, design_notes
from lora_lab.analysis.importance import adaptive_caveat
from lora_lab.analysis.replicates import replicate_groups
from lora_lab.analysis.wording import number_text, plural
from lora_lab.study.space import choices
from lora_lab.study.trial_settings import value_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.analysis.findings import Findings, Standing
    from lora_lab.analysis.replicates import ReplicateGroup
    from lora_lab.study.results import TrialResult
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Parameter, Verdict

__all__ = ["AuditNote", "Kind", "audit", "changed_on_the_way", "unfinished"]

EDGE_SHARE = 0.05
"""A value this close to an end of its range, as a share of the range, is at the edge."""
NATURAL_MINIMUM: dict[str, float] = {
    "r": 1,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "lora_dropout": 0,
    "weight_decay": 0,
    "warmup_ratio": 0,
    "warmup_steps": 0,
    "max_grad_norm": 0,
}
"""Below these there is nothing to try, so a best value there hides nothing."""
LENGTHS = ("num_train_epochs", "max_steps")
MANY_LOOKS = "about 10% instead of 5% for looks at 3, 5 and 10 seeds."
"""By simulation (tests/analysis/test_simulation_verdict.py)."""
NOT_ORDERED = ("seed",)
"""Numbers that are names, so that they have no edge."""


def audit(spec: StudySpec, findings: Findings | None = None, results: Sequence[TrialResult] = ()) -> list[AuditNote]:
    """Name the confounds of a study; without findings, only the confounds of its design (for `plan`).

    Args:
        spec: the study.
        findings: of `decide`.
        results: every trial, for what shows at single ranks only.

    """
    notes = list(design_notes(spec))
    if findings is not None and findings.best is not None and findings.noise is None:
        notes = [note for note in notes if note.kind != "one_seed"]  # the verdict says that itself
    if findings is not None and findings.best is not None:
        notes += _edge_notes(spec, findings.best, results)
        notes += _edges_at_ranks(spec, replicate_groups(results, findings.measure))
        notes += _importance_notes(spec, findings)
    return notes


def changed_on_the_way(verdict: Verdict, declared: Verdict | None, looks: Sequence[int]) -> list[AuditNote]:
    """Name what was changed after results could be seen, which the level of the tests does not allow for.

    Args:
        verdict: What counts as a tie now.
        declared: What did when the first trial began; None where that is not known.
        looks: The numbers of seeds at which a verdict was tested before or now.

    """
    notes = []
    if declared is not None and _margin_text(declared) != _margin_text(verdict):
        sentence = (
            f"The margin was {_margin_text(declared)} when the study began and is {_margin_text(verdict)} now: the 5% "
            "of the tests hold for a margin that is declared before results are seen."
        )
        notes.append(AuditNote(kind="margin_changed", sentence=sentence))
    distinct = list(dict.fromkeys(looks))
    if len(distinct) > 1:
        *first, last = map(str, distinct)
        sentence = (
            f"The verdict was tested with {', '.join(first)} and {last} seeds. Every look is one more chance of a "
            f"wrong claim, {MANY_LOOKS} Declare the number of seeds before the first one."
        )
        notes.append(AuditNote(kind="looked_again", sentence=sentence))
    return notes


def _margin_text(verdict: Verdict) -> str:
    if verdict.absolute_margin is not None:
        return number_text(verdict.absolute_margin)
    return f"{100 * verdict.margin:.3g}% of the gain"


def unfinished(done: int, total: int) -> AuditNote:
    """Say that a study goes on: `done` of `total` trials of its search have ended."""
    rest = f"{done} of {total} trials of the search have ended" if done < total else "finalists wait for retrainings"
    sentence = f"The study is not finished: {rest}. All of this may change; the same sweep command goes on."
    return AuditNote(kind="unfinished", sentence=sentence)


def _edge_notes(spec: StudySpec, best: Standing, results: Sequence[TrialResult]) -> Iterator[AuditNote]:
    stopped = any(result.number == best.number and result.stopped_early for result in results)
    chosen = {name: value_of(best.config, name) for name in spec.sweep.parameters}
    for name, parameter in spec.sweep.parameters.items():
        value = chosen[name] if spec.active(name, chosen) else None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or name in NOT_ORDERED:
            continue
        side = _edge(parameter, float(value))
        if stopped and side == "highest" and name in LENGTHS:
            continue  # it ended by itself before its last step
        if side is None or (side == "lowest" and value <= NATURAL_MINIMUM.get(name, -math.inf)):
            continue
        beyond = "lower" if side == "lowest" else "higher"
        sentence = (
            f"The best trial ({best.number}) has the {side} {name} that was tried "
            f"({number_text(float(value))}): a {beyond} one may be better still. Widen its range."
        )
        yield AuditNote(kind="edge_of_range", sentence=sentence)


def _edges_at_ranks(spec: StudySpec, groups: Sequence[ReplicateGroup]) -> Iterator[AuditNote]:
    """Ranks whose best learning rate lies at an end of its range: they were not tuned to their end."""
    parameter = spec.sweep.parameters.get("learning_rate")
    if parameter is None or len(choices(spec, "r")) < 2:
        return
    at_edge: dict[str, list[int]] = {}
    for r in sorted({group.config.lora.r for group in groups}):
        best = min((g for g in groups if g.config.lora.r == r), key=lambda group: group.search_mean)
        side = _edge(parameter, best.config.training.learning_rate)
        if side is not None:
            at_edge.setdefault(side, []).append(r)
    for edge, ranks in at_edge.items():
        sentence = (
            f"At {plural(len(ranks), 'rank')} ({', '.join(map(str, ranks))}) the best learning_rate is the {edge} that "
            "was tried, so what these ranks can do is not known. Widen its range before comparing ranks."
        )
        yield AuditNote(kind="edge_at_a_rank", sentence=sentence)


def _importance_notes(spec: StudySpec, findings: Findings) -> Iterator[AuditNote]:
    finished = findings.states.get("complete", 0) + findings.states.get("shared", 0)
    sentence = adaptive_caveat(spec.sweep.sampler, finished)
    if sentence is not None:
        yield AuditNote(kind="adaptive_importance", sentence=sentence)


def _edge(parameter: Parameter, value: float) -> Literal["lowest", "highest"] | None:
    """Which end of its range a value lies at; None inside, and where two values leave no inside."""
    if parameter.values is not None:
        numbers = [float(v) for v in parameter.values if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if len(numbers) < max(3, len(parameter.values)):
            return None
        return "lowest" if value <= min(numbers) else "highest" if value >= max(numbers) else None
    if parameter.min is None or parameter.max is None:
        return None
    low, high = float(parameter.min), float(parameter.max)
    share = math.log(value / low) / math.log(high / low) if parameter.log else (value - low) / (high - low)
    return "lowest" if share <= EDGE_SHARE else "highest" if share >= 1 - EDGE_SHARE else None
