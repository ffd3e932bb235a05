"""The process of one item: python -m gpu_items.process ITEM --result FILE ...

Every cell is tried, and its figures or its error become one line of the result file. The parent (`run`) ends a process
whose cell hangs, and starts the item again behind that cell. The process imports first, says that it is ready and waits
for a line on its standard input, so that the next item can warm up while another one is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_items.cells import Cell, Context, rounded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ITEMS: dict[str, tuple[str, str, dict[str, Any]]] = {  # module, function, and its arguments beside the context
    "env": ("environment", "environment_item", {}),
    "exact64": ("exactness", "exact_item", {"dtype": "float64"}),
    "exact32": ("exactness", "exact_item", {"dtype": "float32"}),
    "exact16": ("exactness", "exact_item", {"dtype": "bfloat16"}),
    "exactq": ("exactness", "quantized_item", {}),
    "study": ("study", "study_item", {"trials": 8, "limit_s": 70}),
    "studyalone": ("study", "study_item", {"trials": 24, "limit_s": 65, "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}),
    "predict1b": ("prediction", "predict_item", {"base": "1B"}),
    "predict8b": ("prediction", "predict_item", {"base": "8B"}),
    "memory1b": ("running_out", "memory_item", {}),
    "speed8b": ("speed", "speed_8b_item", {}),
    "speed8bq": ("speed", "speed_nf4_item", {}),
    "speed1b": ("speed", "speed_1b_item", {}),
    "extras": ("extras", "extras_item", {}),
}


class CannotGoOnError(Exception):
    """Nothing after this cell can be measured in this process."""


class Process:
    """Runs the cells of one item, and writes what came of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._file = options.result.open("a", buffering=1)
        self._inject = json.loads(options.inject)

    def say(self, **what: Any) -> None:
        self._file.write(json.dumps(rounded(what)) + "\n")
        self._file.flush()

    def run(self) -> None:
        begun = time.monotonic()
        cells_of = self._import()
        self.say(event="ready", seconds=time.monotonic() - begun)
        order = sys.stdin.readline().split()
        if order[:1] != ["go"]:
            return
        deadline = float(order[1])  # by time.time(), which both processes have
        options, cells = self._options, []
        with self._told():
            cells = cells_of(Context(options.toy, options.scratch, options.project, options.site))
            cells = [cell for cell in cells if cell.always or re.search(options.cells, cell.name)]
        self.say(event="cells", names=[cell.name for cell in cells])
        done = set(json.loads(options.skip))
        with contextlib.suppress(CannotGoOnError):
            self._try_all([cell for cell in cells if cell.always or cell.name not in done], deadline)
        self.say(event="end")

    def _import(self) -> Callable[[Context], list[Cell]]:
        module, function, arguments = ITEMS[self._options.item]
        with self._told():
            item = getattr(import_module(f"gpu_items.{module}"), function)
        return lambda context: item(context, **arguments)

    @contextlib.contextmanager
    def _told(self) -> Any:
        try:
            yield
        except BaseException:
            self.say(event="failed", cell="(item)", error=traceback.format_exc()[-1500:])
            raise

    def _try_all(self, cells: Sequence[Cell], deadline: float) -> None:
        for cell in cells:
            if deadline - time.time() < cell.needs_s:
                self.say(event="no_time", cell=cell.name)
                continue
            trouble = self._inject.get(cell.name)
            self.say(event="begin", cell=cell.name, limit_s=0.3 if trouble == "hang" else cell.limit_s)
            started = time.monotonic()
            try:
                self._meet_with_trouble(trouble)
                result = cell.run()
                self.say(event="done", cell=cell.name, seconds=time.monotonic() - started, result=result)
            except Exception as error:
                frames = traceback.format_exc()[-1800:]
                what = {"seconds": time.monotonic() - started, "error": f"{type(error).__name__}: {error}"[:400]}
                self.say(event="failed", cell=cell.name, trace=frames, **what)
                if cell.always:  # without its base nothing else can be measured
                    raise CannotGoOnError from error
            else:
                continue
            self._recover()

    @staticmethod
    def _meet_with_trouble(kind: str | None) -> None:
        """For rehearsals."""
        match kind:
            case "fail":
                raise RuntimeError("injected")
            case "hang":
                time.sleep(1e6)
            case "crash":
                os.abort()

    def _recover(self) -> None:
        """Free what the failed cell held; a broken CUDA context ends the process, and the parent starts another one."""
        if "torch" not in sys.modules:
            return
        from gpu_items.device import free_all, sync

        try:
            sync()
            free_all()
        except Exception as broken:  # noqa: BLE001 -- CUDA's errors are of many types
            self.say(event="broken", error=str(broken)[:200])
            os._exit(3)


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("item", choices=list(ITEMS))
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--site", type=Path)
    parser.add_argument("--skip", default="[]", help="JSON: names of cells that are done")
    parser.add_argument("--cells", default="", help="a regular expression: only cells that it finds")
    parser.add_argument("--inject", default="{}", help="JSON: {cell: fail | hang | crash}")
    parser.add_argument("--toy", action="store_true")
    Process(parser.parse_args()).run()


if __name__ == "__main__":
    main()
