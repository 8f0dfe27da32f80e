"""A repository's settings, sizes and headers, without its weights. Knows the hub; no tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixoff.checkpoints.safetensors_read import Shard
from mixoff.hub.errors import plain_errors
from mixoff.hub.files import remote_header
from mixoff.hub.repository import HubName, is_weights, list_repository
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
        self._given_name = name
        with plain_errors(name):
            self._repository = list_repository(HubName.parse(name))
            self._repository.require_safetensors()
        self._snapshot = Snapshot(self._repository.name, self._repository.commit)
        self.title = self._repository.title

    @property
    def folder(self) -> Path:
        """The folder of the small files that were fetched."""
        return self._snapshot.folder

    @property
    def nbytes(self) -> Mapping[str, int]:
        """The size of each file of weights, in bytes."""
        files = self._repository.files.values()
        return {file.name: file.nbytes for file in files if is_weights(file.name)}

    def json(self, name: str) -> dict[str, Any] | None:
        """Return the object in a JSON file, or None if there is no such file.

        Raises
        ------
        CheckpointError
            If it can't be fetched, or holds no JSON object.
        """
        file = self._repository.files.get(name)
        if file is None:
            return None
        with plain_errors(self._given_name):
            self._snapshot.fetch(self._repository, file)
        return read_json(self._snapshot.path(name))

    def header(self, name: str) -> Shard:
        """Return the header of a file of weights.

        Raises
        ------
        CheckpointError
            If it can't be fetched, or isn't a safetensors file's.
        """
        with plain_errors(self._given_name):
            file = self._repository.files[name]
            return remote_header(self._repository, file, self._snapshot.path(name))
