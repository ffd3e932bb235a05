"""A small study that is killed before its N-th write to the database; run as a script.

    python killed_study.py FOLDER STRIDE

leaves `FOLDER/N.db` for N = 1, 1 + STRIDE, ..., and at last one that was not killed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from lora_lab.search.store import StudyStore, open_store
from lora_lab.search.urls import sqlite_url
from lora_lab.study.engines import EngineChoice
from lora_lab.study.spec import StudySpec

KILLED = 9
SPEC = StudySpec.model_validate(
    {
        "study_name": "killed",
        "model": {"model_name_or_path": "m"},
        "data": {"train": "t"},
        "training": {"num_train_epochs": 3},
        "sweep": {
            "sampler": "random",
            "pruner": "asha",
            "n_trials": 4,
            "seed": 3,
            "parameters": {
                "r": {"values": [2, 4, 8, 16]},
                "learning_rate": {"min": 1e-4, "max": 1e-2, "log": True},
            },
        },
    }
)
LOSSES = {0: 1.0, 1: 2.0, 2: 0.5}
ENGINE = EngineChoice("reference", "the packed engine refuses the base")


def go_on(store: StudyStore) -> None:
    """Carry the study to its end, from wherever it is: the loop of a coordinator."""
    store.record.replace_spec(SPEC)
    waiting = store.running()
    while asked := waiting.pop(0) if waiting else store.ask():
        train(store, asked.number, is_replicate=asked.replicate > 0)
    store.enqueue_replicate(0, seed=77, replicate=1)
    for asked in iter(store.ask, None):
        train(store, asked.number, is_replicate=True)


def train(store: StudyStore, number: int, *, is_replicate: bool) -> None:
    """Trial 0 completes, 1 is pruned, 2 diverges, 3 shares the outcome of 0."""
    if number != 3:
        store.keep_engine(number, ENGINE)
    if is_replicate:
        store.finish(number, {"eval_loss": 1.1})
    elif number == 3:
        store.share(number, 0)
    else:
        store.report(number, 1, LOSSES[number])
        if store.should_prune(number):
            store.prune(number, "worse")
        elif number == 2:
            store.fail(number, "diverged", "loss is nan")
        else:
            store.report(number, 2, LOSSES[number] / 2)
            store.finish(number, {"eval_loss": LOSSES[number] / 2})


TRAJECTORIES = StudySpec.model_validate(
    SPEC.model_dump(exclude={"study_name", "sweep"})
    | {
        "study_name": "killed",
        "sweep": {
            "sampler": "random",
            "pruner": "asha",
            "n_trials": 6,
            "parameters": {
                "num_train_epochs": {"values": [1, 2, 3]},
                "learning_rate": {"min": 1e-4, "max": 1e-2, "log": True},
            },
        },
    }
)


def go_on_with_trajectories(store: StudyStore) -> None:
    """Runs of 3 epochs give those of 1, and let those of 2 branch off; what is there is not added again."""
    waiting = store.running()
    while asked := waiting.pop(0) if waiting else store.ask():
        number, epochs = asked.number, asked.config.training.num_train_epochs
        for epoch in range(1, epochs + 1):
            store.report(number, epoch, float(-epoch))
            if epoch < epochs and asked.branched_from is None:
                params = {**asked.params, "num_train_epochs": epoch}
                known = any(one.params == params for one in store.results())
                if epoch == 1 and not known:
                    store.add_read_off(number, params, {"eval_loss": -1.0}, 1)
                elif not known and (branch := store.add_branch(number, params, 1)):
                    waiting.append(branch)
        store.finish(number, {"eval_loss": float(-epochs)})


STUDIES = {"plain": (SPEC, go_on), "trajectories": (TRAJECTORIES, go_on_with_trajectories)}


def kill_before_write(nth: int) -> None:
    """End this process, as `kill -9` would, before the n-th transaction that writes is committed."""
    writes, is_writing = 0, False

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal is_writing
        is_writing = is_writing or statement.lstrip().upper().startswith(("INSERT", "UPDATE"))

    def commit(_connection: Any) -> None:
        nonlocal writes, is_writing
        writes, is_writing = writes + is_writing, False
        if writes == nth:
            os._exit(KILLED)

    event.listen(Engine, "before_cursor_execute", note)
    event.listen(Engine, "commit", commit)


def main(folder: Path, stride: int, name: str) -> None:
    spec, carry_on = STUDIES[name]
    for nth in range(1, 1000, stride):
        child = os.fork()
        if child == 0:
            kill_before_write(nth)
            with open_store(spec, sqlite_url(folder / f"{nth}.db")) as store:
                carry_on(store)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return
        if code != KILLED:
            sys.exit(f"write {nth}: exit {code}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
