"""Whether a base can read rows as long as a study makes them, by its config, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError
from lora_lab.study.space import choices

if TYPE_CHECKING:
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.targets import InputLimits


def check_rows(spec: StudySpec, limits: InputLimits) -> list[str]:
    """Compare the longest row that a study allows with the positions of its base.

    Returns:
        A note where rows may be longer than the base was made for, but can be read.

    Raises:
        InputError: a row may be longer than the base has positions.
    """
    longest = max(length for length in choices(spec, "max_length") if isinstance(length, int))
    if limits.positions is not None and longest > limits.positions:
        raise InputError(
            f"data.max_length: {longest} is more than the {limits.positions} positions that this base has; lower it"
        )
    if limits.trained_positions is not None and longest > limits.trained_positions:
        made_for = f"the {limits.trained_positions} positions that the base was made for"
        return [f"data.max_length {longest} is more than {made_for}: it reads longer rows, but has not learned to"]
    return []
