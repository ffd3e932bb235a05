"""What a study reaches over a network, or may: the Hugging Face Hub, MLflow, and a database."""

from __future__ import annotations

import os

from huggingface_hub import constants, get_session, get_token

from lora_lab.checkup.finding import Finding
from lora_lab.common.errors import LoraLabError
from lora_lab.common.secrets import redact, redact_address
from lora_lab.search.connection import connect
from lora_lab.search.patience import Patience
from lora_lab.tracking.address import resolve_tracking_uri, shown_uri, sqlite_path
from lora_lab.tracking.asking import why_silent

HUB_TIMEOUT_S = 5.0


def hub() -> Finding:
    """Whether models and datasets can be fetched, and where fetched ones lie."""
    cache, token = constants.HF_HUB_CACHE, get_token() is not None
    values = {"endpoint": constants.ENDPOINT, "cache": cache, "token": token, "offline": constants.is_offline_mode()}
    known = f"cache {cache}; {'a token is set' if token else 'no token, so that gated models are refused'}"
    if constants.is_offline_mode():
        return Finding("hub", "note", f"offline by HF_HUB_OFFLINE: only folders and what is in the {known}", values)
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S, follow_redirects=True)
    except Exception as error:  # noqa: BLE001 -- whatever the network raises, it means the same
        reason = redact(" ".join(str(error).split()))[:120] or type(error).__name__
        text = f"{constants.ENDPOINT} does not answer ({reason}); only folders and what is in the {known}"
        return Finding("hub", "note", text, values)
    return Finding("hub", "ok", f"{constants.ENDPOINT} answers ({answer.status_code}); {known}", values)


def mlflow(tracking_uri: str | None) -> Finding:
    """Where runs are logged to by what the command line says, and whether that answers."""
    uri = resolve_tracking_uri(tracking_uri)
    values = {"tracking_uri": shown_uri(uri)}
    file = sqlite_path(uri)
    if file is not None and not file.exists():
        there = os.access(file.parent, os.W_OK)
        words = f"{shown_uri(uri)}, made by the first sweep"
        trouble = f"{file.parent} cannot be written; give another store with --tracking-uri"
        return Finding("mlflow", "ok" if there else "problem", words if there else trouble, values)
    reason = why_silent(uri)
    if reason is None:
        return Finding("mlflow", "ok", f"{shown_uri(uri)} answers", values)
    text = f"{shown_uri(uri)} does not answer ({reason}); studies run on, and are sent when it does"
    return Finding("mlflow", "note", text, values)


def storage(url: str) -> Finding:
    """Whether a study's database opens; nothing is made in it."""
    values = {"storage": redact_address(url)}
    try:
        _, engine = connect(url, create=False, patience=Patience(0.0))
    except LoraLabError as error:
        return Finding("storage", "problem", str(error), values)
    engine.dispose()
    return Finding("storage", "ok", f"{redact_address(url)} answers", values)
