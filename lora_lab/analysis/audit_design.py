"""Confounds that a study has by its design, before any trial ran."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_lab.analysis.wording import number_text, rate_text
from lora_lab.study.initializations import INITIALIZATIONS
from lora_lab.study.schedules import SCHEDULES
from lora_lab.study.space import choices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.study.spec import StudySpec

Kind = Literal[
    "unfinished",
    "margin_changed",
    "looked_again",
    "edge_of_range",
    "edge_at_a_rank",
    "one_learning_rate",
    "two_learning_rates",
    "fixed_alpha",
    "no_common_scaling",
    "rslora_scale",
    "rank_dependent_init",
    "schedule_pruning",
    "pruned_replicates",
    "adaptive_importance",
    "one_seed",
    "quantization_dtype",
    "unequal_budget",
    "unequal_text",
]

LENGTHS = ("num_train_epochs", "max_steps")
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "packing")
FEW_RATES = 2
"""So many learning rates have no inside, in which a best one could lie."""
FULL_PRECISION = ("float32", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditNote:
    """One confound: what it is, and what to do about it."""

    kind: Kind
    sentence: str


def design_notes(spec: StudySpec) -> Iterator[AuditNote]:
    """The confounds of a study's design, the most misleading first."""
    yield from _text_notes(spec)
    yield from _rank_notes(spec)
    yield from _scaling_notes(spec)
    yield from _budget_notes(spec)
    yield from _pruning_notes(spec)
    yield from _quantization_notes(spec)
    if not _has_replicates(spec):
        sentence = (
            "Every configuration is trained with one seed, so what the seed alone changes (the noise floor) is not "
            "measured, and no difference is tested. "
            "`confirm: {top: 3, seeds: 3}` retrains the best; `seeds: 3` repeats every cell of a grid."
        )
        yield AuditNote(kind="one_seed", sentence=sentence)


def _varies(spec: StudySpec, name: str) -> bool:
    return len(choices(spec, name)) > 1


def _has_replicates(spec: StudySpec) -> bool:
    confirm = spec.sweep.confirm
    return _varies(spec, "seed") or (confirm is not None and confirm.seeds > 1)


def _text_notes(spec: StudySpec) -> Iterator[AuditNote]:
    if _varies(spec, "max_length"):
        sentence = (
            "max_length is searched, and it cuts the evaluation examples too: trials are measured on different text, "
            "so their losses cannot be compared. Fix max_length, and compare lengths in studies of their own."
        )
        yield AuditNote(kind="unequal_text", sentence=sentence)


def _rank_notes(spec: StudySpec) -> Iterator[AuditNote]:
    if not _varies(spec, "r"):
        return
    if not _varies(spec, "learning_rate"):
        sentence = (
            f"Rank varies at one learning rate ({rate_text(spec.training.learning_rate)}), and the best rate "
            "changes with the rank: ranks that this rate suits look better than they are. "
            "Put learning_rate under parameters."
        )
        yield AuditNote(kind="one_learning_rate", sentence=sentence)
    elif len(choices(spec, "learning_rate")) == FEW_RATES and spec.sweep.parameters["learning_rate"].values:
        sentence = (
            "learning_rate has two values, so the best one of every rank lies at an end of them: what a rank can do at "
            "other rates is not known. Give a third value, or a range."
        )
        yield AuditNote(kind="two_learning_rates", sentence=sentence)
    for name, initialization in INITIALIZATIONS.items():
        if initialization.rank_dependence and name in choices(spec, "init_lora_weights"):
            sentence = (
                f"init_lora_weights: {name} {initialization.rank_dependence}, so ranks start differently. "
                "Use init_lora_weights: true to compare ranks."
            )
            yield AuditNote(kind="rank_dependent_init", sentence=sentence)


def _scaling_notes(spec: StudySpec) -> Iterator[AuditNote]:
    searched, alpha = spec.sweep.parameters, spec.lora.lora_alpha
    free = "lora_alpha" in searched or "alpha_ratio" in searched
    if _varies(spec, "r") and not free and alpha is not None:
        sentence = (
            f"lora_alpha stays {number_text(alpha)} while rank varies, so the scaling "
            f"alpha / {'sqrt(r)' if spec.lora.use_rslora else 'r'} varies too: a difference of ranks may "
            "be one of scaling. Fix alpha_ratio instead, or search it."
        )
        yield AuditNote(kind="fixed_alpha", sentence=sentence)
    elif _varies(spec, "r") and not free and choices(spec, "use_rslora") == (True,):
        sentence = (
            f"Under use_rslora, alpha_ratio {number_text(spec.lora.alpha / spec.lora.r)} gives a scaling of that times "
            "sqrt(r), which grows with the rank: a difference of ranks may be one of scaling. Fix lora_alpha and "
            "search it, or compare ranks without use_rslora."
        )
        yield AuditNote(kind="fixed_alpha", sentence=sentence)
    if _varies(spec, "r") and "lora_alpha" in searched and not _common_scaling(spec):
        alphas = _numbers(spec, "lora_alpha")
        sentence = (
            f"lora_alpha is searched from {number_text(min(alphas))} to {number_text(max(alphas))} at every rank, so "
            "no scaling alpha / r is within reach of all ranks: a difference of ranks may be one of scaling. Search "
            "alpha_ratio instead."
        )
        yield AuditNote(kind="no_common_scaling", sentence=sentence)
    if _varies(spec, "use_rslora"):
        yield _rslora_note(spec)


def _common_scaling(spec: StudySpec) -> bool:
    alphas, ranks = (_numbers(spec, name) for name in ("lora_alpha", "r"))
    root = math.sqrt if choices(spec, "use_rslora") == (True,) else float
    return min(alphas) / root(min(ranks)) <= max(alphas) / root(max(ranks))


def _numbers(spec: StudySpec, name: str) -> list[float]:
    return [float(value) for value in choices(spec, name) if isinstance(value, (int, float))]


def _rslora_note(spec: StudySpec) -> AuditNote:
    factors = sorted({math.sqrt(r) for r in _numbers(spec, "r")})
    times = number_text(factors[0]) + (f" to {number_text(factors[-1])}" if len(factors) > 1 else "")
    sentence = (
        f"use_rslora is compared at another scale: with the same alpha it multiplies the scaling by sqrt(r), here "
        f"{times}. What looks like an effect of rsLoRA may be one of scaling. Compare the trials by their scaling, "
        "and search alpha_ratio widely enough that both arms reach the same ones."
    )
    return AuditNote(kind="rslora_scale", sentence=sentence)


def _budget_notes(spec: StudySpec) -> Iterator[AuditNote]:
    varied = [name for name in BATCH if _varies(spec, name)]
    if not varied:
        return
    if spec.training.max_steps is not None or "max_steps" in spec.sweep.parameters:
        sentence = (
            f"{' and '.join(varied)} varies while max_steps counts steps: trials train on different amounts of text. "
            "Set num_train_epochs instead of max_steps."
        )
        yield AuditNote(kind="unequal_budget", sentence=sentence)
    elif not _varies(spec, "learning_rate"):
        sentence = (
            f"{' and '.join(varied)} varies at one learning rate: larger batches take fewer steps of the same size. "
            "Put learning_rate under parameters."
        )
        yield AuditNote(kind="unequal_budget", sentence=sentence)


def _pruning_notes(spec: StudySpec) -> Iterator[AuditNote]:
    pruner = spec.sweep.pruner
    if pruner == "none":
        return
    if _varies(spec, "seed"):
        sentence = (
            f"{pruner} ends the unlucky seeds of a configuration and keeps the lucky ones, so means over seeds are too "
            "good and spreads too small. Use pruner: none with replicates."
        )
        yield AuditNote(kind="pruned_replicates", sentence=sentence)
    lengths = [name for name in LENGTHS if _varies(spec, name)]
    schedules = _schedules_of_their_length(spec)
    if lengths and schedules:
        sentence = (
            f"{pruner} compares trials of different {lengths[0]} at the same step, but under "
            f"{' and '.join(schedules)} the learning rate there depends on the total length: longer trials look "
            "worse early and are pruned too often. Use lr_scheduler_type: constant, or pruner: none."
        )
        yield AuditNote(kind="schedule_pruning", sentence=sentence)


def _schedules_of_their_length(spec: StudySpec) -> list[str]:
    """The schedules under which a study's learning rate at a step may depend on the number of all steps."""
    by_share = any(choices(spec, "warmup_ratio"))
    names = [name for name in SCHEDULES if name in choices(spec, "lr_scheduler_type")]
    return [one for one in names if SCHEDULES[one].depends_on_length or (by_share and SCHEDULES[one].has_warmup)]


def _quantization_notes(spec: StudySpec) -> Iterator[AuditNote]:
    arms = choices(spec, "quantization")
    if len(arms) < 2:
        return
    if "none" in arms and spec.model.dtype not in FULL_PRECISION:
        what = "bfloat16 on a GPU that has it" if spec.model.dtype == "auto" else spec.model.dtype
        sentence = (
            f"On a quantized base adapters train in float32, on the unquantized one in dtype ({spec.model.dtype}: "
            f"{what}), so the arms of quantization differ in that too. Set model.dtype: float32 where memory allows."
        )
        yield AuditNote(kind="quantization_dtype", sentence=sentence)
    elif "int8" in arms:
        sentence = (
            "int8 rounds activations through float16, the other arms of quantization compute in "
            f"{spec.model.dtype}: the arms differ in that too."
        )
        yield AuditNote(kind="quantization_dtype", sentence=sentence)
