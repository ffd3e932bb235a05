"""The trial of a study that a command is to work on: by its number, or by what the verdict calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from lora_lab.results.results import Results
    from lora_lab.study.results import TrialResult

Role = Literal["best", "recommended"]
ROLES: tuple[Role, ...] = ("best", "recommended")


def chosen_trial(results: Results, choice: int | Role, option: str) -> TrialResult:
    """The trial that is meant.

    Args:
        results: The study's trials and the verdict.
        choice: A trial's number, or what the verdict calls it.
        option: The words on the command line that chose it, for messages.

    Raises:
        InputError: there is no such trial.
    """
    if isinstance(choice, int):
        found = next((trial for trial in results.trials if trial.number == choice), None)
        if found is None:
            raise InputError(
                f"{option}: study {results.spec.study_name} has no such trial; it has "
                f"{len(results.trials)}, numbered from 0"
            )
        return found
    standing = results.findings.best if choice == "best" else results.findings.cheapest
    if standing is None:
        raise InputError(
            f"{option}: no trial of study {results.spec.study_name} reached its end; name one by its number"
        )
    return next(trial for trial in results.trials if trial.number == standing.number)


def roles_of(results: Results, number: int) -> tuple[Role, ...]:
    """What the verdict calls a trial."""
    standings = {"best": results.findings.best, "recommended": results.findings.cheapest}
    return tuple(role for role in ROLES if (standing := standings[role]) is not None and standing.number == number)
