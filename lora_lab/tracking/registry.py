"""A trial's adapter as a version of a model in MLflow's registry. Imports MLflow, which takes seconds.

Only the adapter is stored. `mlflow.transformers.log_model` is not used: on a base without a Hub id it stores the whole
base under names that no loader finds again, and loading then succeeds with random weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from lora_lab.common.errors import InputError, StorageError
from lora_lab.common.secrets import redact, secrets_of
from lora_lab.tracking.address import shown_uri
from lora_lab.tracking.store import TRIAL_TAG

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FORBIDDEN = "/:"
"""Characters that a registered model's name must not have."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: str
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        """Where `mlflow.artifacts.download_artifacts` finds it; by its alias where it has one."""
        return f"models:/{self.name}@{self.aliases[0]}" if self.aliases else f"models:/{self.name}/{self.version}"


def check_name(name: str) -> None:
    """Raise InputError unless MLflow takes this as the name of a registered model."""
    if not name.strip() or any(character in name for character in FORBIDDEN):
        raise InputError(f"--register: a model's name has no / and no :, but is {name!r}")


def register(
    tracking_uri: str,
    study_name: str,
    number: int,
    name: str,
    folder: Path,
    *,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    aliases: Sequence[str],
    description: str,
) -> Registered:
    """Store an adapter folder as a new version of a model, tied to the run of its trial.

    Args:
        tracking_uri: The store.
        study_name: Of the experiment.
        number: The trial's.
        name: The registered model's; made where there is none.
        folder: What is stored.
        params: Settings, on the logged model.
        tags: On the logged model and on the version: MLflow shows those of the version.
        aliases: Names that mean this version from now on.
        description: Of the version, as Markdown.

    Raises:
        InputError: the store has no run of this trial.
        StorageError: the store cannot be reached, or refuses.
    """
    try:
        mlflow.set_tracking_uri(tracking_uri)  # where `models:/` of a version is looked up, whatever the client's store
        client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
        experiment_id, run_id = _run(client, study_name, number, tracking_uri)
        model = client.create_logged_model(
            experiment_id,
            name=f"trial-{number:04d}",
            source_run_id=run_id,
            params=dict(params),
            tags=dict(tags),
            model_type="lora_adapter",
        )
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
        _make(client, name)
        source = f"models:/{model.model_id}"
        made = client.create_model_version(
            name, source, run_id, tags=dict(tags), description=description, model_id=model.model_id
        )
        for alias in aliases:
            client.set_registered_model_alias(name, alias, made.version)
    except MlflowException as error:
        reason = redact(" ".join(str(error).split()), secrets_of(tracking_uri))[:300]
        raise StorageError(f"--register {name}: {shown_uri(tracking_uri)} refuses ({reason})") from error
    return Registered(name, str(made.version), tuple(aliases))


def _run(client: Any, study_name: str, number: int, tracking_uri: str) -> tuple[str, str]:
    """The experiment of a study, and the newest run of a trial in it."""
    experiment = client.get_experiment_by_name(study_name)
    runs = experiment and client.search_runs(
        [experiment.experiment_id], f"tags.`{TRIAL_TAG}` = '{number}'", order_by=["attributes.start_time DESC"]
    )
    if not runs:
        raise InputError(
            f"--register: {shown_uri(tracking_uri)} has no run of trial {number} of study {study_name}; give the store "
            "that the sweep logged to with --tracking-uri"
        )
    return str(experiment.experiment_id), str(runs[0].info.run_id)


def _make(client: Any, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
