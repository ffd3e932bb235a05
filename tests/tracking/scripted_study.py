"""A scripted study of five trials and what MLflow must show of it; as a program it dies at a given call."""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lora_lab.study.events import Diverged, Evaluated, Failed, Finished, Logged
from lora_lab.tracking import mirror
from lora_lab.tracking.journal import Journal, read
from lora_lab.tracking.mirror import MlflowMirror
from lora_lab.tracking.records import Attached, DatasetInput, StudyEnded, StudyStarted, TrialEnded, TrialStarted

STATES = {0: "complete", 1: "pruned", 2: "diverged", 3: "failed", 4: "shared"}
STATUSES = {0: "FINISHED", 1: "KILLED", 2: "FAILED", 3: "FAILED", 4: "FINISHED"}
STEPS = 12


def logged(number: int, step: int) -> Logged:
    return Logged(
        number=number,
        step=step,
        epoch=step / 4,
        loss=3.0 / (step + number + 1),
        grad_norm=0.5 + step,
        learning_rate=1e-3 * (number + 1),
    )


def evaluated(number: int, step: int) -> Evaluated:
    return Evaluated(
        number=number,
        step=step,
        epoch=step / 4,
        evaluation=step // 4,
        eval_loss=2.0 / (step + 1),
        forgetting_loss=1.5,
    )


def started(number: int) -> TrialStarted:
    return TrialStarted(
        number=number,
        name=f"trial-{number:04d} r={2**number} a=32 all-linear e=2",
        params={"r": 2**number, "learning_rate": 1e-3 * (number + 1), "target_modules": ("q_proj", "v_proj")},
        tags={"config_id": f"c{number}"},
    )


def study_started() -> StudyStarted:
    return StudyStarted(
        question="Which rank?",
        params={"model_name_or_path": "builtin/tiny-llama"},
        tags={"lora_lab.sampler": "tpe"},
        datasets=(DatasetInput(name="stdlib-code", digest="abc123", source="builtin/stdlib-code"),),
    )


def write_first_half(journal: Journal) -> None:
    """Trials 0 to 3 side by side, as in a pack; trial 2 diverges and trial 1 is pruned on the way."""
    journal.append(study_started(), *(started(number) for number in range(4)))
    for step in range(1, STEPS // 2 + 1):
        journal.append(*(logged(number, step) for number in range(4)))
        if step % 4 == 0:
            journal.append(*(evaluated(number, step) for number in range(4)))
    at = {"step": STEPS // 2, "epoch": 1.5}
    journal.append(Diverged(number=2, reason="loss is nan at step 6", **at))
    journal.append(TrialEnded(number=2, state="diverged", step=6, reason="loss is nan", metrics={"loss": math.nan}))
    journal.append(TrialEnded(number=1, state="pruned", step=6, reason="asha", metrics={"eval_loss": 0.4}))


def write_second_half(journal: Journal) -> None:
    """Trial 0 ends well with an adapter, 3 fails, and 4 is read off another one's trajectory."""
    for step in range(STEPS // 2 + 1, STEPS + 1):
        journal.append(logged(0, step), logged(3, step))
    final = {"eval_loss": 2.0 / (STEPS + 1), "trainable_params": 4096, "train_seconds": 1.25}
    adapter = journal.folder / "adapters" / "0"
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "adapter_config.json").write_text("{}")
    journal.append(evaluated(0, STEPS))
    journal.append(Finished(number=0, step=STEPS, epoch=3.0, metrics=final))
    journal.append(TrialEnded(number=0, state="complete", step=STEPS, metrics=final, adapter_folder=adapter))
    journal.append(Attached(number=0, path=adapter, artifact_path="adapter"))
    journal.append(Failed(number=3, step=STEPS, epoch=3.0, reason="ValueError: its own"))
    journal.append(TrialEnded(number=3, state="failed", step=STEPS, reason="ValueError: its own"))
    journal.append(started(4), TrialEnded(number=4, state="shared", step=8, metrics={"eval_loss": 0.5}))
    report = journal.folder / "report.html"
    report.write_text("<p>report</p>")
    journal.append(Attached(number=None, path=report))
    journal.append(StudyEnded(state="complete", tags={"lora_lab.best_trial": "0"}))


def write_study(folder: Path) -> None:
    with Journal(folder) as journal:
        write_first_half(journal)
        write_second_half(journal)


CURVES = ("loss", "eval_loss", "forgetting_loss", "perplexity")


def points_in_journal(folder: Path) -> dict[int, dict[str, list[tuple[int, float]]]]:
    """Every metric point that MLflow must have, once, by trial and metric."""
    found: dict[int, dict[str, list[tuple[int, float]]]] = {}

    def add(number: int, name: str, step: int, value: float) -> None:
        found.setdefault(number, {}).setdefault(name, []).append((step, value))

    for entry, _ in read(folder):
        record = entry.record
        if isinstance(record, Logged):
            for name in ("loss", "grad_norm", "learning_rate", "epoch"):
                add(record.number, name, record.step, getattr(record, name))
        elif isinstance(record, Evaluated):
            add(record.number, "eval_loss", record.step, record.eval_loss)
            add(record.number, "perplexity", record.step, math.exp(record.eval_loss))
            if record.forgetting_loss is not None:
                add(record.number, "forgetting_loss", record.step, record.forgetting_loss)
        elif isinstance(record, TrialEnded):
            for name, value in record.metrics.items():
                shown = found.get(record.number, {}).get(name, [])
                if not shown or shown[-1][1] != value:
                    at = record.step if name in CURVES else 0
                    add(record.number, name, at, float(value))
    return found


def runs_in_mlflow(client: Any, study_name: str) -> tuple[Any, dict[int, Any]]:
    """The parent run, and the child runs by trial number."""
    experiment = client.get_experiment_by_name(study_name)
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {int(run.data.tags["lora_lab.trial"]): run for run in runs if run not in parents}
    assert len(parents) == 1
    assert len(runs) == 1 + len(children), "a trial has two runs"
    return parents[0], children


def points_in_mlflow(client: Any, run: Any) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        history.sort(key=lambda point: (point.step, point.timestamp))
        found[name] = [(point.step, point.value) for point in history]
    return found


def assert_mirrored(client: Any, folder: Path) -> None:
    """MLflow shows exactly what the journal of a complete scripted study says."""
    parent, children = runs_in_mlflow(client, folder.name)
    assert parent.info.status == "FINISHED"
    assert sorted(children) == sorted(STATES)
    expected = points_in_journal(folder)
    for number, run in children.items():
        assert run.info.run_name == started(number).name
        assert run.data.params == {
            "r": str(2**number),
            "learning_rate": str(1e-3 * (number + 1)),
            "target_modules": "q_proj,v_proj",
        }
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["lora_lab.state"] == STATES[number]
        assert run.data.tags["config_id"] == f"c{number}"
        assert run.info.status == STATUSES[number]
        assert repr(points_in_mlflow(client, run)) == repr({name: expected[number][name] for name in run.data.metrics})
        assert set(run.data.metrics) == set(expected[number])


def die_after(place: str, count: int) -> None:
    """Let the process kill itself once `place` has been passed `count` times."""
    from mlflow import MlflowClient

    owner = MlflowMirror if place == "_save_cursor" else MlflowClient
    real, passed = getattr(owner, place), [0]

    def deadly(self: Any, *args: Any, **kwargs: Any) -> Any:
        if place == "_save_cursor" and passed[0] + 1 == count:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(self, *args, **kwargs)
        passed[0] += 1
        if passed[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, place, deadly)


def main(points: list[str]) -> None:
    """For every `folder|uri|place|count`: mirror the journal in `folder` from a process that dies there."""
    import mlflow  # noqa: F401 - once, before the forks

    mirror.ENTRIES_PER_CHUNK = 10
    for point in points:
        folder, uri, place, count = point.split("|")
        child = os.fork()
        if child == 0:
            die_after(place, int(count))
            mirror.catch_up(Path(folder), uri)
            os._exit(0)
        print(place, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
