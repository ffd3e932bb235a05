"""Writes the export folder of a trial for one target, or says why that cannot be."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.common.files import replacing_folder
from lora_lab.exporters.readme import readme
from lora_lab.exporters.table import Remark, judge
from lora_lab.exporters.targets import STANDALONE, TARGETS
from lora_lab.exporters.trial import BASE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_lab.exporters.targets import TargetName
    from lora_lab.exporters.trial import ExportedTrial


@dataclass(frozen=True, slots=True)
class Export:
    """What became of a trial at one target."""

    target: TargetName
    folder: Path | None
    """Where its files are, None where the target cannot take the trial; then nothing was written."""
    command: str
    """What to run in the folder."""
    warnings: Sequence[Remark]
    refusals: Sequence[Remark]


def hand_over(trial: ExportedTrial, target: TargetName, parent: Path) -> Export:
    """Write `parent/<target>/`, replacing what was there, unless the target refuses something of the trial.

    Raises:
        StorageError: the folder cannot be written.
        InputError: the trial's data cannot be read.
    """
    remarks = judge(trial, target)
    refusals = [remark for remark in remarks if remark.outcome == "refused"]
    warnings = [remark for remark in remarks if remark.outcome == "warned"]
    if refusals:
        return Export(target, None, "", warnings, refusals)
    folder = parent / target
    with replacing_folder(folder) as partial:
        _link_base(trial, target, partial)
        command = TARGETS[target].writer(trial, partial)
        (partial / "README.md").write_text(readme(trial, target, command, warnings), encoding="utf-8")
    return Export(target, folder, command, warnings, refusals)


def _link_base(trial: ExportedTrial, target: TargetName, folder: Path) -> None:
    """Make `base` lead to a base on this machine, so that files can name it without a path."""
    if trial.local_base is not None and target not in STANDALONE:
        where = os.path.relpath(trial.local_base.resolve(), folder.resolve())
        (folder / BASE).symlink_to(where, target_is_directory=True)
