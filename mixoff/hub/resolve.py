"""The folder of a named checkpoint, at one commit. Knows what to refuse before it is fetched.

A given revision (``owner/repository@revision``) is resolved to a commit first, and only that
commit's files are used.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HTTPError

from mixoff.checkpoints.folder import INDEX_NAME
from mixoff.checkpoints.mixtral_offloading import is_mixtral_offloading
from mixoff.checkpoints.quantization_config import QUANT_METHOD
from mixoff.errors import CheckpointError
from mixoff.hub.download import require_room
from mixoff.hub.errors import is_temporary, plain_errors
from mixoff.hub.repository import (
    HubName,
    RemoteFile,
    Repository,
    is_on_hub,
    list_repository,
    short_title,
)
from mixoff.hub.snapshot import Snapshot, cached_snapshot, is_complete
from mixoff.safe_json import read_json

_WHOLE_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubCheckpoint:
    """A checkpoint's folder here; its repository and commit, if it is from the hub."""

    folder: Path
    repository: str | None = None
    revision: str | None = None

    @property
    def title(self) -> str:
        """The name shown to a person: ``owner/repository@1234abcd``, else the folder."""
        if self.repository is None or self.revision is None:
            return str(self.folder)
        return short_title(self.repository, self.revision)


def named_checkpoint(name_or_path: str | Path) -> HubCheckpoint:
    """Return the checkpoint of a name, fetched from the hub unless it is a folder here.

    Files that were fetched before aren't fetched again, every file is compared with the hub's hash
    once, and without a network the commit that was fetched last is used.

    Parameters
    ----------
    name_or_path
        A folder, or ``owner/repository`` or ``owner/repository@revision`` on the hub, where the
        revision is a branch, a tag or a commit.

    Raises
    ------
    CheckpointError
        If there is no such folder or repository, the hub can't be reached, the disk is full, a
        file differs from what the hub lists, or the repository holds no mixoff checkpoint.
    """
    if not is_on_hub(name_or_path):
        if (path := Path(name_or_path).expanduser()).is_dir():
            return HubCheckpoint(path)
        raise CheckpointError(f"{name_or_path}: no such folder.")
    name = HubName.parse(str(name_or_path))
    with plain_errors(str(name)):
        snapshot = _cached_commit(name) or _fetch(name)
    return HubCheckpoint(snapshot.folder, name.repository, snapshot.commit)


def _fetch(name: HubName) -> Snapshot:
    try:
        repository = list_repository(name)
    except (OSError, HTTPError) as error:
        if is_temporary(error) and (snapshot := _cached(name)) is not None:
            return snapshot
        raise
    snapshot = Snapshot(repository.name, repository.commit)
    repository.require_safetensors()
    # Before any file is fetched, so that offline an incomplete snapshot is recognized as one.
    snapshot.save_listing(repository, name.revision)
    _require_mixoff_checkpoint(repository, snapshot)
    missing = [file for file in repository.files.values() if not snapshot.has(file.name)]
    require_room(repository, missing, snapshot.folder)
    for file in repository.files.values():
        snapshot.fetch(repository, file)
    return snapshot


def _cached_commit(name: HubName) -> Snapshot | None:
    """Return a complete snapshot of a name with a whole commit hash, which can't have changed."""
    return _cached(name) if _WHOLE_COMMIT.fullmatch(name.revision or "") else None


def _cached(name: HubName) -> Snapshot | None:
    """Return a name's snapshot if it is complete in the cache, verified."""
    snapshot = cached_snapshot(name)
    if snapshot is None or not is_complete(snapshot, files := snapshot.listed()):
        return None
    for file in files:
        snapshot.verify(file)
    return snapshot


def _require_mixoff_checkpoint(repository: Repository, snapshot: Snapshot) -> None:
    """Refuse a repository without a checkpoint that mixoff reads, by its small files alone."""
    config = _read_settings(repository, snapshot, "config.json")
    if config is None:
        raise CheckpointError(f"{repository.title}: has no config.json, so it isn't a model.")
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    index = _read_settings(repository, snapshot, INDEX_NAME) or {}  # a small model has none
    if method == QUANT_METHOD or is_mixtral_offloading(index.get("weight_map")):
        return
    kind = f"its quantization is {method!r}" if method else "it isn't quantized"
    raise CheckpointError(
        f"{repository.title}: no mixoff checkpoint ({kind}), so its weights were not fetched: make "
        "one from a Mixtral in Hugging Face's format with `mixoff quantize`, or try `mixoff demo`."
    )


def _read_settings(
    repository: Repository, snapshot: Snapshot, name: str
) -> dict[str, object] | None:
    file: RemoteFile | None = repository.files.get(name)
    if file is None:
        return None
    snapshot.fetch(repository, file)
    return read_json(snapshot.path(name))
