"""The MLflow side of the mirror: journal entries become runs, metrics, params, tags and artifacts.

Importing this module imports MLflow (seconds), so only the mirror's thread does it.

Every send is idempotent, so entries may be sent again after a crash or a lost answer: runs are found by their
tags before one is made, a metric point equals itself by (name, step, time, value), params are sent only where
the run has none, and tags, inputs and artifacts replace themselves.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, InputTag, LifecycleStage, Metric, Param, RunTag, ViewType
from mlflow.entities import DatasetInput as MlflowDatasetInput

from lora_lab.study.events import Evaluated, Logged
from lora_lab.study.measures import MEASURES
from lora_lab.tracking.address import sqlite_path
from lora_lab.tracking.prepared_view import TAG, view_tag
from lora_lab.tracking.records import Attached, Measured, StudyEnded, StudyStarted, TrialEnded, TrialStarted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialState
    from lora_lab.study.sweep import Value
    from lora_lab.tracking.journal import Entry
    from lora_lab.tracking.records import DatasetInput, StudyState

METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
JOURNAL_TAG = "lora_lab.journal"
TRIAL_TAG = "lora_lab.trial"
STATE_TAG = "lora_lab.state"
REASON_TAG = "lora_lab.reason"
ADAPTER_TAG = "lora_lab.adapter_folder"
ARTIFACTS_FOLDER = "mlartifacts"
MAX_EXPONENT = 700.0
MAX_DIGEST = 36
MAX_PARAM = 6000
BAD_NAME_CHARACTER = re.compile(r"[^\w\-./ ]")

TRIAL_STATUS: Mapping[TrialState, str] = {"complete": "FINISHED", "shared": "FINISHED", "pruned": "KILLED"}
STUDY_STATUS: Mapping[StudyState, str] = {"complete": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}

Item = TypeVar("Item")

_log = logging.getLogger(__name__)

STEPWISE = frozenset({"loss", "perplexity", "forgetting_loss", "grad_norm", "learning_rate", "epoch"})
"""Curves of a training besides the measures that every evaluation has."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's pages show what belongs to training instead of what belongs to prompts and traces."""


def measurements(record: Logged | Evaluated) -> dict[str, float]:
    """The metrics of one event by their MLflow names; losses in nats per token."""
    if isinstance(record, Logged):
        return {
            "loss": record.loss,
            "grad_norm": record.grad_norm,
            "learning_rate": record.learning_rate,
            "epoch": record.epoch,
        }
    values = {"eval_loss": record.eval_loss, "perplexity": math.exp(min(record.eval_loss, MAX_EXPONENT))}
    if record.forgetting_loss is not None:
        values["forgetting_loss"] = record.forgetting_loss
    return values | {name: value for name, value in record.costs.items() if _is_curve(name)}


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


class MlflowStore:
    """One study in one MLflow store: the experiment, the parent run, and a child run for each trial.

    A deleted experiment, or a deleted run that has news, is restored.
    """

    def __init__(self, tracking_uri: str, study_name: str, journal_id: str) -> None:
        self._study_name, self._journal_id = study_name, journal_id
        self._client: Any = MlflowClient(tracking_uri)
        self._experiment_id = self._find_or_create_experiment(tracking_uri)
        self._runs: dict[int | None, str] = {}
        self._deleted: set[str] = set()
        self._find_runs()

    @property
    def is_new(self) -> bool:
        """Whether nothing of this study is in the store, whatever a cursor says."""
        return None not in self._runs

    def send(self, entries: Sequence[Entry]) -> None:
        """Send the entries, in order for each trial; when this returns they are stored."""
        points: dict[int, list[Metric]] = defaultdict(list)
        for entry in entries:
            record, at_ms = entry.record, entry.at_ms
            match record:
                case Logged() | Evaluated():
                    points[record.number] += (
                        Metric(name, value, at_ms, record.step) for name, value in measurements(record).items()
                    )
                case StudyStarted():
                    self._start_study(record, at_ms)
                case TrialStarted():
                    self._start_trial(record, at_ms)
                case TrialEnded():
                    self._log_metrics(record.number, points.pop(record.number, []), at_ms)
                    self._end_trial(record, at_ms)
                case StudyEnded():
                    self._end_study(record, at_ms)
                case Attached():
                    self._attach(record, at_ms)
                case Measured():
                    self._log_final(self._run_id(record.number, at_ms), record.metrics, 0, at_ms)
                case _:
                    pass  # how a trial ended is told by its TrialEnded
        for number, metrics in points.items():
            self._log_metrics(number, metrics, entries[-1].at_ms)

    def _find_or_create_experiment(self, tracking_uri: str) -> str:
        found = self._client.get_experiment_by_name(self._study_name)
        if found is None:
            database = sqlite_path(tracking_uri)
            artifacts = str(database.parent / ARTIFACTS_FOLDER / self._study_name) if database else None
            return str(
                self._client.create_experiment(self._study_name, artifact_location=artifacts, tags=EXPERIMENT_TAGS)
            )
        if found.lifecycle_stage == LifecycleStage.DELETED:
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find_runs(self) -> None:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                f"tags.`{JOURNAL_TAG}` = '{self._journal_id}'",
                run_view_type=ViewType.ALL,
                page_token=token,
            )
            for run in page:
                number = run.data.tags.get(TRIAL_TAG)
                self._runs[None if number is None else int(number)] = run.info.run_id
                if run.info.lifecycle_stage == LifecycleStage.DELETED:
                    self._deleted.add(run.info.run_id)
            token = page.token
            if not token:
                return

    def _run_id(self, number: int | None, at_ms: int, name: str = "") -> str:
        """The run of a trial, or of the study for None; made where there is none, restored where deleted."""
        run_id = self._runs.get(number)
        if run_id is None:
            run_id = self._runs[number] = self._create_run(number, at_ms, name)
        elif run_id in self._deleted:
            self._client.restore_run(run_id)
            self._deleted.remove(run_id)
        return run_id

    def _create_run(self, number: int | None, at_ms: int, name: str) -> str:
        tags = {
            JOURNAL_TAG: self._journal_id,
            "mlflow.source.name": "lora_lab.sweep",
            "mlflow.source.type": "LOCAL",
        }
        if number is None:
            name = self._study_name
        else:
            name = name or f"trial-{number:04d}"
            tags |= {TRIAL_TAG: str(number), "mlflow.parentRunId": self._run_id(None, at_ms)}
        run = self._client.create_run(self._experiment_id, start_time=at_ms, tags=tags, run_name=name)
        return str(run.info.run_id)

    def _start_study(self, record: StudyStarted, at_ms: int) -> None:
        run_id = self._run_id(None, at_ms)
        self._open(run_id, record.params, {"mlflow.note.content": record.question, **record.tags})
        if record.datasets:
            self._client.log_inputs(run_id, datasets=[_dataset(item) for item in record.datasets])
        prepare_view(self._client, self._experiment_id, MEASURES[record.judged], record.searched, at_ms)

    def _start_trial(self, record: TrialStarted, at_ms: int) -> None:
        self._open(self._run_id(record.number, at_ms, record.name), record.params, record.tags)

    def _open(self, run_id: str, params: Mapping[str, Value], tags: Mapping[str, str]) -> None:
        """Mark the run as running; its params are immutable, so only those that it lacks are sent."""
        run = self._client.get_run(run_id)
        if run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        new = [Param(_key(name), _text(value)) for name, value in params.items() if _key(name) not in run.data.params]
        for chunk in _chunks(new, PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=chunk)
        self._tag(run_id, {**tags, STATE_TAG: "running"})

    def _end_trial(self, record: TrialEnded, at_ms: int) -> None:
        run_id = self._run_id(record.number, at_ms)
        tags: dict[str, str] = {STATE_TAG: record.state}
        if record.reason:
            tags[REASON_TAG] = record.reason
        if record.adapter_folder is not None:
            tags[ADAPTER_TAG] = str(record.adapter_folder)
        self._log_final(run_id, record.metrics, record.step, at_ms)
        self._tag(run_id, tags)
        self._client.set_terminated(run_id, TRIAL_STATUS.get(record.state, "FAILED"), end_time=at_ms)

    def _end_study(self, record: StudyEnded, at_ms: int) -> None:
        run_id = self._run_id(None, at_ms)
        self._log_final(run_id, record.metrics, 0, at_ms)
        self._tag(run_id, {**record.tags, STATE_TAG: record.state})
        self._client.set_terminated(run_id, STUDY_STATUS[record.state], end_time=at_ms)

    def _log_final(self, run_id: str, metrics: Mapping[str, float], step: int, at_ms: int) -> None:
        """Log final figures, save those that the run shows already, such as the last point of a curve.

        A figure that is no curve stands at step 0: MLflow draws bars then, which compare trials of any length.
        """
        if not metrics:
            return
        shown = self._client.get_run(run_id).data.metrics
        new = [
            Metric(_key(name), float(value), at_ms, step if _is_curve(name) else 0)
            for name, value in metrics.items()
            if shown.get(_key(name)) != value
        ]
        for chunk in _chunks(new, METRICS_PER_CALL):
            self._client.log_batch(run_id, metrics=chunk)

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        entities = [RunTag(_key(name), value) for name, value in tags.items()]
        for chunk in _chunks(entities, PARAMS_PER_CALL):
            self._client.log_batch(run_id, tags=chunk)

    def _log_metrics(self, number: int, metrics: Sequence[Metric], at_ms: int) -> None:
        for chunk in _chunks(metrics, METRICS_PER_CALL):
            self._client.log_batch(self._run_id(number, at_ms), metrics=chunk)

    def _attach(self, record: Attached, at_ms: int) -> None:
        run_id = self._run_id(record.number, at_ms)
        if record.path.is_dir():
            self._client.log_artifacts(run_id, str(record.path), record.artifact_path)
        elif record.path.is_file():
            self._client.log_artifact(run_id, str(record.path), record.artifact_path)
        else:
            _log.warning("not sent to MLflow, because it is gone: %s", record.path)


def prepare_view(client: Any, experiment_id: str, judged: Measure, searched: Sequence[str], at_ms: int) -> None:
    """Give MLflow's page of a study its view, unless it has one: somebody may have changed that."""
    if TAG not in client.get_experiment(experiment_id).tags:
        client.set_experiment_tag(experiment_id, TAG, view_tag(judged, searched, at_ms))


def _key(name: str) -> str:
    """A name that MLflow takes."""
    return BAD_NAME_CHARACTER.sub("_", name)


def _is_curve(name: str) -> bool:
    return name in STEPWISE or (name in MEASURES and MEASURES[name].curve)


def _text(value: Value) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text[:MAX_PARAM]


def _dataset(item: DatasetInput) -> MlflowDatasetInput:
    kind = "local" if Path(item.source).exists() else "name"
    dataset = Dataset(
        name=item.name,
        digest=item.digest[:MAX_DIGEST],
        source_type=kind,
        source=json.dumps({"uri": item.source}),
    )
    return MlflowDatasetInput(dataset, tags=[InputTag("mlflow.data.context", item.context)])
