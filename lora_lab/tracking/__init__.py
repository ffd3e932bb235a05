"""Tracking: a journal on disk that holds what happened, and a mirror of it in MLflow that people browse.

The sweep writes the journal; the mirror follows it from a thread of its own and may fail at any time without
the sweep noticing::

    with Journal(run_folder) as journal:                   # runs/<study_name>
        mirror = MlflowMirror(run_folder, tracking_uri)    # returns at once, MLflow is imported in the thread
        mirror.start()
        journal.append(study_started(spec, datasets=inputs))
        journal.append(trial_started(7, config, engine="packed"))
        for event in engine:                               # Logged, Evaluated, ...
            journal.append(event)
        journal.append(TrialEnded(number=7, state="complete", step=300, metrics=metrics))
        journal.append(Attached(number=7, path=adapter_folder, artifact_path="adapter"))
        journal.append(StudyEnded(state="complete"))
        note = mirror.close(timeout_s=30)                  # None, or one line to print

Later, `catch_up(run_folder)` sends what MLflow did not take, and `ui_command(resolve_tracking_uri())` is the
command that shows it.
"""

from lora_lab.tracking.address import resolve_tracking_uri, ui_command
from lora_lab.tracking.describe import study_started, trial_name, trial_params, trial_started
from lora_lab.tracking.journal import Entry, Journal, curves, read
from lora_lab.tracking.mirror import MlflowMirror, catch_up
from lora_lab.tracking.records import (
    Attached,
    DatasetInput,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialStarted,
)
from lora_lab.tracking.redaction import redact

__all__ = [
    "Attached",
    "DatasetInput",
    "Entry",
    "Journal",
    "MlflowMirror",
    "StudyEnded",
    "StudyStarted",
    "TrialEnded",
    "TrialStarted",
    "catch_up",
    "curves",
    "read",
    "redact",
    "resolve_tracking_uri",
    "study_started",
    "trial_name",
    "trial_params",
    "trial_started",
    "ui_command",
]
