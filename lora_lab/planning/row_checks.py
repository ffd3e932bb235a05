"""What a base's config says of a study's rows and of its own dropout, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError
from lora_lab.study.space import choices

if TYPE_CHECKING:
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.targets import InputLimits, LinearMap


def dropout_notes(linears: LinearMap) -> list[str]:
    """What to know of a base whose own config asks for dropout: no trial has it, while `Trainer` would."""
    if not linears.dropout:
        return []
    shares = ", ".join(f"{name} {share:g}" for name, share in sorted(linears.dropout.items()))
    own = f"the base's config has dropout of its own ({shares})"
    return [f"{own}, which is off here, in training too. `Trainer` leaves it on, so its losses differ"]


def base_notes(spec: StudySpec, linears: LinearMap) -> list[str]:
    """All that a base's config says of a study's rows and of its own dropout.

    Raises:
        InputError: it does not read such rows as a study needs them (`check_rows`).
    """
    return [*check_rows(spec, linears.limits), *dropout_notes(linears)]


def check_rows(spec: StudySpec, limits: InputLimits) -> list[str]:
    """Compare the longest row that a study allows with the positions of its base.

    Returns:
        Notes where rows may be longer than the base was made for, or so long that their batch is read in another way.

    Raises:
        InputError: a row may be longer than the base has positions, or so long that later ones are read in another way.
    """
    longest = max(length for length in choices(spec, "max_length") if isinstance(length, int))
    if limits.positions is not None and longest > limits.positions:
        raise InputError(
            f"data.max_length: {longest} is more than the {limits.positions} positions that this base has; lower it"
        )
    new = spec.evaluation.max_new_tokens if spec.evaluation.metrics_of("answers", spec.model.task_type) else 0
    if limits.positions is not None and new >= limits.positions:
        raise InputError(
            f"evaluation.max_new_tokens: {new} leaves a prompt none of the {limits.positions} positions that this base "
            "has; lower it"
        )
    alike = limits.alike_up_to
    if alike is not None and longest > alike and limits.remembers_longest:
        raise InputError(
            f"data.max_length: {longest} is more than {alike}, beyond which this base (dynamic RoPE) reads a row by "
            "the longest that it has seen, so that a trial's losses would depend on the rows before; lower it"
        )
    notes = []
    if alike is not None and longest > alike:
        notes.append(
            f"data.max_length {longest} is more than {alike}, beyond which this base (longrope) reads a whole batch by "
            "its longest row: trials with such rows run on the reference engine, one at a time"
        )
    if limits.trained_positions is not None and longest > limits.trained_positions:
        made_for = f"the {limits.trained_positions} positions that the base was made for"
        notes.append(f"data.max_length {longest} is more than {made_for}: it reads longer rows, but has not learned to")
    return notes
