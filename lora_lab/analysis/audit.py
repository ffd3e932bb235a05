"""The confound audit: what in a study's design or outcome makes its comparison say less than it seems to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_lab.analysis.selection import value_of
from lora_lab.analysis.wording import number_text, rate_text

if TYPE_CHECKING:
    from lora_lab.analysis.verdict import Findings, Standing
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Parameter, Value

Kind = Literal["edge_of_range", "one_learning_rate", "fixed_alpha", "rank_dependent_init", "schedule_pruning"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditNote:
    """One confound: what it is, and what to do about it."""

    kind: Kind
    sentence: str


def audit(spec: StudySpec, findings: Findings | None = None) -> list[AuditNote]:
    """Name the confounds of a study; without findings, those of its design alone (for `plan`)."""
    best = findings.best if findings else None
    return [*_rank_notes(spec), *_schedule_notes(spec), *(_edge_notes(spec, best) if best else [])]


def _choices(spec: StudySpec, name: str) -> tuple[Value, ...]:
    """The values that a parameter can take: those of the sweep, or the fixed one."""
    parameter = spec.sweep.parameters.get(name)
    if parameter is None:
        return (value_of(spec.trial_config({}), name),)
    if parameter.values is not None:
        return parameter.values
    return tuple(bound for bound in (parameter.min, parameter.max) if bound is not None)


def _rank_notes(spec: StudySpec) -> list[AuditNote]:
    if len(_choices(spec, "r")) < 2:
        return []
    notes = []
    if len(_choices(spec, "learning_rate")) < 2:
        sentence = (
            f"Rank varies at one learning rate ({rate_text(spec.training.learning_rate)}), and the best rate "
            "falls as rank rises: ranks that this rate suits look better than they are. "
            "Put learning_rate under parameters."
        )
        notes.append(AuditNote(kind="one_learning_rate", sentence=sentence))
    alpha, searched = spec.lora.lora_alpha, spec.sweep.parameters
    if alpha is not None and "lora_alpha" not in searched and "alpha_ratio" not in searched:
        sentence = (
            f"lora_alpha stays {number_text(alpha)} while rank varies, so the scaling "
            f"alpha / {'sqrt(r)' if spec.lora.use_rslora else 'r'} varies too: a difference of ranks may "
            "be one of scaling. Fix alpha_ratio instead, or search it."
        )
        notes.append(AuditNote(kind="fixed_alpha", sentence=sentence))
    if "gaussian" in _choices(spec, "init_lora_weights"):
        sentence = (
            "init_lora_weights: gaussian draws A with a standard deviation of 1 / r, so ranks start "
            "differently. Use init_lora_weights: true to compare ranks."
        )
        notes.append(AuditNote(kind="rank_dependent_init", sentence=sentence))
    return notes


def _schedule_notes(spec: StudySpec) -> list[AuditNote]:
    lengths = [name for name in ("num_train_epochs", "max_steps") if len(_choices(spec, name)) > 1]
    schedules = [name for name in ("linear", "cosine") if name in _choices(spec, "lr_scheduler_type")]
    if spec.sweep.pruner == "none" or not lengths or not schedules:
        return []
    sentence = (
        f"{spec.sweep.pruner} compares trials of different {lengths[0]} at the same step, but under "
        f"{' and '.join(schedules)} the learning rate there depends on the total length: longer trials look "
        "worse early and are pruned too often. Use lr_scheduler_type: constant, or pruner: none."
    )
    return [AuditNote(kind="schedule_pruning", sentence=sentence)]


def _edge_notes(spec: StudySpec, best: Standing) -> list[AuditNote]:
    chosen = {name: value_of(best.config, name) for name in spec.sweep.parameters}
    notes = []
    for name, parameter in spec.sweep.parameters.items():
        value = chosen[name] if spec.active(name, chosen) else None
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        side = _edge(parameter, float(value))
        if side is None or (side == "lowest" and value <= NATURAL_MINIMUM.get(name, -math.inf)):
            continue
        beyond = "lower" if side == "lowest" else "higher"
        notes.append(
            AuditNote(
                kind="edge_of_range",
                sentence=f"The best trial ({best.number}) has the {side} {name} that was tried "
                f"({number_text(float(value))}): a {beyond} one may be better still. Widen its range.",
            )
        )
    return notes


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
