"""Studies that a database holds, read without their files."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import optuna

from lora_lab.common.errors import StorageError
from lora_lab.common.secrets import redact_address
from lora_lab.search.connection import connect
from lora_lab.search.study_record import SPEC
from lora_lab.study.file.loading import load_spec_json

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from lora_lab.study.spec import StudySpec


def stored_spec(url: str, study_name: str) -> StudySpec:
    """A study as it was when its trials were last trained, without its `storage`.

    Raises:
        StorageError: the database cannot be opened, has no such study, or one that has not begun.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    connected, engine = connect(url, create=False)
    storage = cast("BaseStorage", connected)
    try:
        kept = storage.get_study_user_attrs(storage.get_study_id_from_name(study_name))
    except KeyError:
        raise StorageError(f"storage {redact_address(url)}: there is no study {study_name!r} in it") from None
    finally:
        engine.dispose()
    if SPEC not in kept:
        raise StorageError(f"study {study_name} has not begun: no trial of it was ever trained")
    return load_spec_json(kept[SPEC])
