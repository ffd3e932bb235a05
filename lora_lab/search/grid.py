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

from lora_lab.study.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lora_lab.search.space import SearchSpace
    from lora_lab.study.sweep import Scalar

MAX_CELLS = 100_000


class Grid:
    """All cells, in an order that depends on the seed alone: a part of a grid then still covers its breadth.

    Raises:
        InputError: there are more than 100 000 cells.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        cells = list(islice(space.cells(), MAX_CELLS + 1))
        if len(cells) > MAX_CELLS:
            raise InputError(
                f"sweep.parameters: a grid may have {MAX_CELLS} cells, but this one has more; "
                "take values away, or use sampler: random"
            )
        by_key = {_key(cell): cell for cell in cells}
        order = sorted(by_key, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
        self._cells = {key: by_key[key] for key in order}

    def __len__(self) -> int:
        return len(self._cells)

    def next_cell(self, taken: Iterable[Mapping[str, Scalar]]) -> dict[str, Scalar] | None:
        """The first cell that is not taken, None when all are."""
        keys = {_key(cell) for cell in taken}
        return next((cell for key, cell in self._cells.items() if key not in keys), None)


def _key(cell: Mapping[str, Scalar]) -> str:
    return json.dumps(cell, sort_keys=True)
