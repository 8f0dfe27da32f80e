"""Upload of a converted checkpoint to the hub. Knows which files belong to a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HTTPError

from mixoff.checkpoints.folder import INDEX_NAME, CheckpointFolder
from mixoff.checkpoints.mixoff_format import MixoffCheckpoint
from mixoff.checkpoints.source_files import COMPANIONS
from mixoff.errors import CheckpointError, ConfigError
from mixoff.hub.card import model_card
from mixoff.hub.errors import plain_errors


def push_to_hub(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """Upload a checkpoint that mixoff wrote, with a card, in one commit; return its address.

    Only the checkpoint's own files are uploaded. Files that an interrupted upload has sent aren't
    sent again.

    Parameters
    ----------
    folder
        The checkpoint.
    repository
        ``owner/repository``; created if it doesn't exist.
    private
        Whether a new repository is visible to its owner only.
    base_model, license, evaluation
        As for `model_card`; the default licence is the one named on the base model's page.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged, or the hub refuses or can't be reached.
    ConfigError
        If the name isn't a repository's, or a value of the evaluation isn't a finite number.
    """
    if repository.count("/") != 1 or "@" in repository or not all(repository.split("/")):
        raise ConfigError(f"repository={repository!r}: give it as owner/repository.")
    checkpoint = MixoffCheckpoint.open(CheckpointFolder.open(folder))
    checkpoint.verify()
    card = model_card(
        folder,
        repository=repository,
        base_model=base_model,
        license=license or _license_of(base_model),
        evaluation=evaluation,
    )
    with plain_errors(repository):
        HfApi().create_repo(repository, private=private, exist_ok=True)
        return _upload(
            repository,
            [CommitOperationAdd("README.md", card.encode()), *_additions(checkpoint)],
        )


def _upload(repository: str, additions: list[CommitOperationAdd]) -> str:
    """Make one commit of the files and return its address."""
    message = "Upload a checkpoint with mixoff"
    try:
        return str(HfApi().create_commit(repository, additions, commit_message=message).commit_url)
    except ValueError as error:  # the client can't read the hub's answer about large files
        raise CheckpointError(f"{repository}: the upload failed ({error}).") from None
    except RuntimeError as error:  # wraps the error of one of the client's threads
        if isinstance(cause := error.__cause__, OSError | HTTPError):
            raise cause from None
        raise CheckpointError(f"{repository}: the upload failed ({error}).") from error


def own_files(checkpoint: MixoffCheckpoint) -> list[Path]:
    """Return the files of a checkpoint, and nothing else that lies in its folder."""
    settings = [checkpoint.path / name for name in ("config.json", INDEX_NAME, *COMPANIONS)]
    weights = [shard.path for shard in checkpoint.shards.values()]
    return [*(path for path in settings if path.is_file()), *weights]


def _additions(checkpoint: MixoffCheckpoint) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path.name, path) for path in own_files(checkpoint)]


def _license_of(base_model: str | None) -> str | None:
    """Return the licence named on a model's page, or None if it is unknown."""
    if base_model is None:
        return None
    try:
        card = HfApi().model_info(base_model).card_data
    except (OSError, HTTPError, ValueError):  # a card without a licence is still true
        return None
    license = card.get("license") if card is not None else None
    return license if isinstance(license, str) else None
