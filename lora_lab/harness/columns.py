"""Who is evaluated: the bare base, and the trials that are asked for, as columns of a table of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError
from lora_lab.results.choosing import ROLES, chosen_trial
from lora_lab.study.task_scores import BASE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import Results
    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import ModelSettings

ALL = "all"


@dataclass(frozen=True, slots=True)
class Column:
    """One that is evaluated."""

    name: str
    """`base`, or a trial's number."""
    trial: TrialResult | None
    adapter: Path | None


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


def has_adapter(folder: RunFolder, trial: TrialResult) -> bool:
    """Whether the adapter of a trial is still there; those far from the best are dropped as trials end."""
    return (folder.adapter_of(trial) / "adapter_model.safetensors").is_file()


def columns_by_base(trials: Sequence[TrialResult], folder: RunFolder) -> Mapping[ModelSettings, Sequence[Column]]:
    """The columns that share a loaded base, the bare one first; where several are searched, `base` says which it is."""
    bases: dict[ModelSettings, list[Column]] = {}
    for trial in trials:
        bases.setdefault(trial.config.model, []).append(Column(str(trial.number), trial, folder.adapter_of(trial)))
    return {
        model: [Column(BASE if len(bases) == 1 else f"{BASE} ({_words(model)})", None, None), *own]
        for model, own in bases.items()
    }


def _words(model: ModelSettings) -> str:
    quantization = model.quantization + (" double" if model.double_quant else "")
    return f"{quantization}, {model.dtype}" if model.quantization != "none" else model.dtype


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
