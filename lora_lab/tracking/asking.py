"""Short questions to an MLflow store, by commands that wait for the answer. MLflow takes seconds to import."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from lora_lab.common.secrets import redact, secrets_of
from lora_lab.tracking.mirror import QUIET
from lora_lab.tracking.prepared_view import page_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.study.measures import Measure

LONGEST_REASON = 160


def why_silent(tracking_uri: str) -> str | None:
    """What keeps a store from answering, in one line; None where it answers."""
    try:
        _client(tracking_uri).search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001 -- drivers and networks have errors of their own
        return redact(" ".join(str(error).split()), secrets_of(tracking_uri))[:LONGEST_REASON]
    return None


def study_pages(tracking_uri: str, study_name: str, judged: Measure, searched: Sequence[str]) -> tuple[str, str] | None:
    """Prepare MLflow's page of a study, also of one begun before there was a view.

    Returns:
        The paths of its table of trials and of its charts; None where the store does not have the study.
    """
    client = _client(tracking_uri)
    from lora_lab.tracking.store import prepare_view

    experiment = client.get_experiment_by_name(study_name)
    if experiment is None:
        return None
    prepare_view(client, experiment.experiment_id, judged, searched, round(time.time() * 1000))
    return page_path(experiment.experiment_id), page_path(experiment.experiment_id, charts=True)


def _client(tracking_uri: str) -> Any:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)
