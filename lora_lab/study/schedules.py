"""The learning-rate schedules, and what each of them knows of a training's length.

A new schedule needs its row here, its curve in `training/schedule.py`, and a line in `docs/study-file.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["constant", "constant_with_warmup", "linear", "cosine", "warmup_stable_decay"]
"""The names of `transformers.get_scheduler`."""
Shares = Literal["all", "to the decay", "nothing"]
"""What a training has in common with longer ones under its settings: all its steps, those before its decay, none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What is true of a schedule, whatever its curve."""

    shares: Shares
    """What the rates have in common with those of longer trainings, after a warm-up of so many steps or none."""
    with_warmup: ScheduleName | None = None
    """The schedule that is this one after a warm-up, for a schedule that has none itself."""

    @property
    def has_warmup(self) -> bool:
        """Whether the rate rises from 0 over the first steps; `warmup_steps` or `warmup_ratio` says over how many."""
        return self.with_warmup is None

    @property
    def has_decay(self) -> bool:
        """Whether the rate falls over the last steps alone; `decay_steps` or `decay_ratio` says over how many."""
        return self.shares == "to the decay"

    @property
    def depends_on_length(self) -> bool:
        """Whether the rate at a step depends on how many steps there are in all."""
        return self.shares != "all"


SCHEDULES: dict[ScheduleName, Schedule] = {
    "constant": Schedule(shares="all", with_warmup="constant_with_warmup"),
    "constant_with_warmup": Schedule(shares="all"),
    "linear": Schedule(shares="nothing"),
    "cosine": Schedule(shares="nothing"),
    "warmup_stable_decay": Schedule(shares="to the decay"),
}
