"""What the hub tells of a repository without its weights. Knows settings, sizes and headers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixoff.checkpoints.safetensors_read import Shard
from mixoff.hub.errors import plain_errors
from mixoff.hub.files import remote_header
from mixoff.hub.repository import HubName, ask_hub
from mixoff.hub.snapshot import Snapshot
from mixoff.safe_json import read_json


class HubMetadata:
    """A repository at one commit, of which only small files and headers are ever fetched.

    Parameters
    ----------
    name
        ``owner/repository`` or ``owner/repository@revision``.

    Raises
    ------
    CheckpointError
        If there is no such repository or revision, or the hub can't be reached.
    """

    def __init__(self, name: str) -> None:
        self._called = name
        with plain_errors(name):
            self._repository = ask_hub(HubName.parse(name))
            self._repository.require_safetensors()
        self._snapshot = Snapshot(self._repository.name, self._repository.commit)
        self.title = self._repository.title

    @property
    def folder(self) -> Path:
        """Where the small files lie that were fetched."""
        return self._snapshot.folder

    @property
    def nbytes(self) -> Mapping[str, int]:
        """The size of each file of weights."""
        files = self._repository.files.values()
        return {f.name: f.nbytes for f in files if f.name.endswith(".safetensors")}

    def json(self, name: str) -> dict[str, Any] | None:
        """Return what a JSON file holds, or None if there is none.

        Raises
        ------
        CheckpointError
            If it can't be fetched, or holds no JSON object.
        """
        file = self._repository.files.get(name)
        if file is None:
            return None
        with plain_errors(self._called):
            self._snapshot.fetch(self._repository, file)
        return read_json(self._snapshot.path(name))

    def header(self, name: str) -> Shard:
        """Return the header of a file of weights.

        Raises
        ------
        CheckpointError
            If it can't be fetched, or is no safetensors file's.
        """
        with plain_errors(self._called):
            file = self._repository.files[name]
            return remote_header(self._repository, file, self._snapshot.path(name))
