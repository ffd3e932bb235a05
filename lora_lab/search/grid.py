"""The grid: which cells there are, and which comes next.

Optuna's own GridSampler is not used. Under ask and tell it raises at the last cell (`Study.stop` outside of
`optimize`) and at an enqueued trial (`KeyError: 'grid_id'`), and it visits a cell once for every value of a
parameter that is not active there. A cell is enqueued as a trial with fixed values, in one transaction, so a
kill neither loses a cell nor repeats one.
"""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError
from lora_lab.study.trajectory import EPOCHS, choice_shares

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lora_lab.search.space import SearchSpace
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Scalar

MAX_CELLS = 100_000


class Grid:
    """All cells, in an order that depends on the seed alone: a part of a grid then still covers its breadth.

    Cells that differ in the number of epochs alone follow each other, the longest first, where its training contains
    the others.

    Raises:
        InputError: there are more than 100 000 cells.
    """

    def __init__(self, spec: StudySpec, space: SearchSpace) -> None:
        cells = list(islice(space.cells(), MAX_CELLS + 1))
        if len(cells) > MAX_CELLS:
            raise InputError(
                f"sweep.parameters: a grid may have {MAX_CELLS} cells, but this one has more; "
                "take values away, or use sampler: random"
            )
        by_key = {_key(cell): cell for cell in cells}
        order = sorted(by_key, key=lambda key: hashlib.sha256(f"{spec.sweep.seed}/{key}".encode()).digest())
        trajectories: dict[str, list[str]] = {}
        for key in order:
            trajectories.setdefault(_trajectory(spec, by_key[key]), []).append(key)
        self._cells = {key: by_key[key] for keys in trajectories.values() for key in _longest_first(keys, by_key)}

    def __len__(self) -> int:
        return len(self._cells)

    def next_cell(self, taken: Iterable[Mapping[str, Scalar]]) -> dict[str, Scalar] | None:
        """The first cell that is not taken, None when all are."""
        keys = {_key(cell) for cell in taken}
        return next((cell for key, cell in self._cells.items() if key not in keys), None)


def _trajectory(spec: StudySpec, cell: Mapping[str, Scalar]) -> str:
    """A key that is equal for cells whose longest training contains the shorter ones."""
    if EPOCHS in cell and choice_shares(spec, cell) != "nothing":
        return _key({name: value for name, value in cell.items() if name != EPOCHS})
    return _key(cell)


def _longest_first(keys: list[str], cells: Mapping[str, Mapping[str, Scalar]]) -> list[str]:
    return sorted(keys, key=lambda key: cells[key].get(EPOCHS, 0), reverse=True)


def _key(cell: Mapping[str, Scalar]) -> str:
    return json.dumps(cell, sort_keys=True)
