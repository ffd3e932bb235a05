"""The run: starts the items in the order of their worth, and rewrites gpu.json and table.txt after every cell."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from gpu_items.child import Child, Launch
from gpu_items.table import table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BENCHMARKS = Path(__file__).resolve().parents[1]
PROJECT = BENCHMARKS.parent
SITE = PROJECT / ".gpu-site"
"""The packages that gpu_pack.sh has put together."""
STDOUT_CHARACTERS = 11_300
CARD = "timestamp,utilization.gpu,utilization.memory,memory.used,clocks.sm,clocks.mem,power.draw,temperature.gpu"
VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONUNBUFFERED": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Stage:
    """Items that run side by side."""

    items: tuple[str, ...]
    budget_s: float
    reserve_s: float = 0.0
    """What the stages before must leave for this one."""


STAGES = (  # in the order of worth; budgets are for 8 minutes, and what one does not use the next ones have
    Stage(("env",), 40),
    Stage(("exact64", "exact32", "exact16", "exactq", "study"), 95, 45),
    Stage(("speed8b",), 175, 90),
    Stage(("memory1b",), 60, 35),
    Stage(("speed8bq",), 60, 35),
    Stage(("speed1b",), 60, 25),
    Stage(("studyalone",), 75),
    Stage(("extras",), 75),
)
PLANNED_S = 480
BACKGROUND = ("predict8b", "predict1b")  # no GPU, one core each


class Run:
    """One call: its items, their processes, and the time that is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._begun = time.time()
        self._end = self._begun + 60 * options.minutes
        self._output: Path = options.output
        self._output.mkdir(parents=True, exist_ok=True)
        self._one_by_one = options.toy and not options.parallel
        self._scratch = Path(tempfile.mkdtemp(prefix="gpu-once-"))
        site = _site()
        self._launch = Launch(
            scratch=self._scratch,
            project=PROJECT,
            site=site,
            environment=_environment(site),
            toy=options.toy,
            limits=options.limits or (3.0 if options.toy else 1.0),
            cells=options.cells,
            inject=_injected(options.inject),
        )
        self.items: dict[str, dict[str, Any]] = {}
        self._facts = {
            "what": "one call on a GPU (benchmarks/gpu_once.py)",
            "toy": options.toy,
            "minutes": options.minutes,
            "began": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
            "project": _identity(),
        }
        self._written = 0.0
        self._children: list[Child] = []
        self._card: subprocess.Popen[bytes] | None = None

    # The book of figures

    def cell(self, item: str, name: str, line: dict[str, Any]) -> None:
        """Note what came of a cell."""
        self.items[item]["cells"][name] = line
        seconds = f"{line['seconds']:.1f} s" if "seconds" in line else ""
        word = "ok" if line["ok"] else f"FAILED {line.get('error', '')[:150]}"
        print(f"[{time.time() - self._begun:5.0f} s] {item}: {name}: {seconds} {word}", flush=True)
        self._write()

    def unfinished(self, item: str) -> list[str]:
        """Its cells that were not tried; one without a name where it never came to say what they are."""
        found = self.items[item]
        return [name for name in found.get("order", ["all of it"]) if name not in found["cells"]]

    def _write(self, *, now: bool = False) -> None:
        if not now and time.time() - self._written < 1.0:
            return
        self._written = time.time()
        whole = self._facts | {"elapsed_s": round(time.time() - self._begun, 1), "items": self.items}
        for name, text in (("gpu.json", json.dumps(whole, indent=1)), ("table.txt", self.table())):
            partial = self._output / f".{name}.partial"
            partial.write_text(text + "\n")
            partial.replace(self._output / name)

    def table(self, limit: int | None = None) -> str:
        """All figures as text, or as much as fits into so many characters."""
        return table(self._facts | {"elapsed_s": time.time() - self._begun}, self.items, limit)

    # Stages

    def all(self, only: Sequence[str], skip: Sequence[str]) -> None:
        """Run the items of all stages, and then what found no time in its own."""
        stages, background = self._planned(only, skip)
        self._watch_card()
        warm: dict[str, Child] = {}
        behind = [self._make(item) for item in background]
        for child in behind:
            child.begin(lambda: self._end - 8)

        def warm_up(index: int) -> None:
            if index < len(stages) and not self._one_by_one:
                warm.update({item: self._make(item) for item in stages[index].items})

        for index, stage in enumerate(stages):
            group = [warm.pop(item, None) or self._make(item) for item in stage.items]
            if index == 0:  # the first imports on a bare machine are slow: all at once
                warm_up(1)
            for child in group:
                child.begin(lambda stage=stage, later=stages[index + 1 :]: self._deadline(stage, later))
            self._wait(group, behind, lambda index=index: warm_up(index + 1) if index else None)
            if time.time() > self._end - 6:
                break
        if not self._one_by_one:
            self._leftovers([item for stage in stages for item in stage.items], behind)
        self._wait(behind, [])

    def _planned(self, only: Sequence[str], skip: Sequence[str]) -> tuple[list[Stage], list[str]]:
        def wanted(name: str) -> bool:
            return (not only or name in only) and name not in skip

        background = [item for item in BACKGROUND if wanted(item)]
        stages = [
            Stage(kept, stage.budget_s, stage.reserve_s)
            for stage in STAGES
            if (kept := tuple(item for item in stage.items if wanted(item)))
        ]
        if not self._one_by_one:
            return stages, background
        return [Stage((item,), 0) for item in [*(item for stage in stages for item in stage.items), *background]], []

    def _make(self, item: str) -> Child:
        """Start the process of an item; it waits until it is told to begin."""
        self.items.setdefault(item, {"cells": {}})
        variables = {}
        if item in BACKGROUND:
            variables = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        elif item.startswith("exact"):  # several at a time
            variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4")}
        child = Child(item, self._launch, self, self._end - 4, variables)
        self._children.append(child)
        return child

    def _deadline(self, stage: Stage, later: Sequence[Stage]) -> float:
        """When this stage must be over, so that the later ones have what is reserved for them."""
        now, last = time.time(), self._end - 4
        if self._one_by_one:
            return last
        scale = (self._end - self._begun) / PLANNED_S
        reserved = scale * sum(one.reserve_s for one in later)
        return min(last, max(now + 15, min(now + scale * stage.budget_s, last - reserved)))

    def _wait(
        self, group: Sequence[Child], background: Sequence[Child], near_the_end: Callable[[], None] = lambda: None
    ) -> None:
        """Until all of a group are over; what comes next imports its packages while the last cells are measured."""
        told = False
        while not all([child.poll() for child in group]) and time.time() < self._end:  # noqa: C419 -- ask every one
            for child in background:
                child.poll()
            if not told and all(self._is_near_its_end(child) for child in group):
                near_the_end()
                told = True
            time.sleep(0.05)
        if not told:
            near_the_end()
        self._write(now=True)

    def _is_near_its_end(self, child: Child) -> bool:
        known = "order" in self.items[child.item]
        late = child.gone and time.time() > child.deadline - 12
        return child.over or late or (known and len(self.unfinished(child.item)) <= 3)

    def _leftovers(self, items: Sequence[str], background: Sequence[Child]) -> None:
        """What found no time in its stage, as long as there is some left."""
        for item in items:
            if self.unfinished(item) and self._end - time.time() > 30:
                again = self._make(item)
                again.begin(lambda: self._end - 4)
                self._wait([again], background)

    def _watch_card(self) -> None:
        """Load, clocks and power of the card, by the second."""
        command = ["nvidia-smi", f"--query-gpu={CARD}", "--format=csv,noheader,nounits", "-lms", "1000"]
        with suppress(OSError), (self._output / "smi.csv").open("w") as file:
            file.write(CARD + "\n")
            file.flush()
            self._card = subprocess.Popen(  # noqa: S603 -- the driver's own tool
                command, stdout=file, stderr=subprocess.DEVNULL, process_group=0
            )

    def close(self) -> None:
        """End all processes and write what there is."""
        for child in self._children:
            child.kill()
            with suppress(ValueError):
                child.read()
            self.items[child.item]["not_run"] = self.unfinished(child.item)
        if self._card:
            self._card.kill()
            self._card.wait()
        logs = [
            f"===== {file.stem}\n{file.read_text(errors='replace')[-200_000:]}"
            for file in sorted(self._scratch.glob("*.log"))
        ]
        (self._output / "log.txt").write_text("\n".join(logs))
        rmtree(self._scratch, ignore_errors=True)
        self._write(now=True)

    @property
    def clean(self) -> bool:
        """Whether every cell that was tried succeeded."""
        return all(line["ok"] for found in self.items.values() for line in found["cells"].values())


def _site() -> Path | None:
    """The carried packages, where they are for this Python: a rehearsal beside them has its own."""
    if not SITE.is_dir():
        return None
    known, own = SITE / "PYTHON", "{}.{}".format(*sys.version_info)
    packed_for = known.read_text().strip() if known.is_file() else "another version"
    if packed_for == own:
        return SITE
    print(f"{SITE.name} is left out: it is for Python {packed_for}, and this is {own}", flush=True)
    return None


def _environment(site: Path | None) -> dict[str, str]:
    paths = [str(PROJECT), str(BENCHMARKS)] + ([str(site)] if site else [])
    own = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    paths += [str(Path(part).resolve()) for part in own]
    return dict(os.environ) | VARIABLES | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _identity() -> dict[str, str]:
    """Which lora_lab this is: a hash of its sources, and its commit where git or gpu_pack.sh knows it."""
    digest = hashlib.sha256()
    for file in sorted((PROJECT / "lora_lab").rglob("*.py")):
        digest.update(file.read_bytes())
    found = {"sources": digest.hexdigest()[:16]}
    if (SITE / "COMMIT").is_file():  # what was copied here; a repository beside it may be an older one
        return found | {"commit": (SITE / "COMMIT").read_text().strip()[:12]}
    command = ["git", "-C", str(PROJECT), "rev-parse", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603
        found["commit"] = done.stdout.strip()[:12]
    return found


def _injected(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """KIND:ITEM/CELL, by item and cell."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        kind, _, where = text.partition(":")
        item, _, cell = where.partition("/")
        found.setdefault(item, {})[cell] = kind
    return found


def main(description: str) -> None:
    names = [item for stage in STAGES for item in stage.items] + list(BACKGROUND)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--toy", action="store_true", help="in miniature, also on a CPU, one item after the other")
    parser.add_argument("--parallel", action="store_true", help="with --toy: side by side all the same, as on a GPU")
    parser.add_argument("--only", nargs="*", default=[], choices=names, metavar="ITEM", help=", ".join(names))
    parser.add_argument("--skip", nargs="*", default=[], choices=names, metavar="ITEM")
    parser.add_argument("--cells", default="", metavar="REGEX", help="only cells whose names it finds something in")
    parser.add_argument(
        "--inject", nargs="*", default=[], help="for rehearsals: fail:ITEM/CELL, hang:ITEM/CELL, crash:ITEM/CELL"
    )
    parser.add_argument(
        "--limits", type=float, help="factor on the time limits of cells; by default 1, and 3 with --toy"
    )
    options = parser.parse_args()
    options.output = options.output.resolve()
    run = Run(options)

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        run.all(options.only, options.skip)
    except KeyboardInterrupt:
        print("stopped from outside")
    finally:
        run.close()
        print("\n\n" + run.table(STDOUT_CHARACTERS), flush=True)
    sys.exit(0 if run.clean else 1)
