"""Who is evaluated: the bare base, and the trials that are asked for, as columns of a table of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.study.task_scores import BASE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_lab.results.folder import RunFolder
    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class Column:
    """One that is evaluated."""

    name: str
    """`base`, or a trial's number."""
    trial: TrialResult | None
    adapter: Path | None


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
