"""Uploads a trial's adapter with its card to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError, StorageError
from lora_lab.common.secrets import redact
from lora_lab.data.locations import HUB_ID
from lora_lab.exporters.staged import stage

if TYPE_CHECKING:
    from lora_lab.exporters.trial import ExportedTrial


def push(trial: ExportedTrial, repo: str, *, public: bool) -> str:
    """Upload adapter and card; a repository that does not exist yet is made.

    Args:
        trial: Whose adapter.
        repo: `owner/name`.
        public: Whether anyone may see a new repository.

    Returns:
        The address of the upload.

    Raises:
        InputError: the name cannot be right, or the adapter was not kept.
        StorageError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if not HUB_ID.fullmatch(repo):
        raise InputError(f"--push: must be owner/name, but is {repo!r}")
    api = HfApi()
    try:
        with tempfile.TemporaryDirectory() as folder:
            stage(trial, Path(folder), option="--push", loaded_from=repo)
            api.create_repo(repo, private=not public, exist_ok=True)
            return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Upload {trial.title}"))
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = redact(" ".join(str(error).split()))[:300]
        raise StorageError(
            f"--push {repo}: {reason}; log in with `hf auth login` (a token that may write), unset HF_HUB_OFFLINE, "
            "and run the same command again"
        ) from error
