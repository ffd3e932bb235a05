"""The trial of a study that a command is to work on: by its number, or by what the verdict calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.analysis.findings import Role
    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import Results
    from lora_lab.study.results import TrialResult

ROLES: tuple[Role, ...] = ("best", "recommended")
ALL = "all"


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


def chosen_trials(results: Results, folder: RunFolder, words: Sequence[str]) -> list[TrialResult]:
    """The trials that are asked for, each once.

    Args:
        results: The study's.
        folder: Where its adapters are.
        words: Each `best`, `recommended`, a trial's number, or `all` whose adapters were kept.

    Raises:
        InputError: there is no such trial, or its adapter was not kept.
    """
    chosen: dict[int, TrialResult] = {}
    for word in words:
        for trial in _meant(results, folder, word):
            if not has_adapter(folder, trial):
                raise InputError(_not_kept(results, folder, trial, word))
            chosen.setdefault(trial.number, trial)
    return list(chosen.values())


def best_trials(results: Results, folder: RunFolder, count: int) -> list[TrialResult]:
    """So many of the trials whose adapters were kept, the best first; retrainings are left out.

    Raises:
        InputError: no adapter was kept.
    """
    measure = results.findings.measure
    found = [trial for trial in _meant(results, folder, ALL) if trial.confirms is None]
    return sorted(found, key=lambda trial: measure.as_loss(trial.metrics[measure.name]))[:count]


def has_adapter(folder: RunFolder, trial: TrialResult) -> bool:
    """Whether the adapter of a trial is still there; those far from the best are dropped as trials end."""
    return (folder.adapter_of(trial) / "adapter_model.safetensors").is_file()


def _meant(results: Results, folder: RunFolder, word: str) -> list[TrialResult]:
    option = f"--trials {word}"
    if word == ALL:
        found = [trial for trial in results.trials if trial.has_value and has_adapter(folder, trial)]
        if not found:
            raise InputError(f"{option}: no trial of study {results.spec.study_name} has an adapter; train it first")
        return found
    if word.isdecimal():
        return [chosen_trial(results, int(word), option)]
    for role in ROLES:
        if word == role:
            return [chosen_trial(results, role, option)]
    raise InputError(f"{option}: must be {', '.join(ROLES)}, {ALL} or the number of a trial")


def _not_kept(results: Results, folder: RunFolder, trial: TrialResult, word: str) -> str:
    kept = [str(one.number) for one in results.trials if has_adapter(folder, one)]
    there = f"those of trials {', '.join(kept)} are there" if kept else "no trial has one any more"
    return f"--trials {word}: the adapter of trial {trial.number} ({trial.state}) is not in {folder.trials}; {there}"
