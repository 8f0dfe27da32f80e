"""An unquantized model's files, fetched one by one. Knows headers and whole files; no tensors."""

from collections.abc import Mapping, Set
from contextlib import suppress
from pathlib import Path

from huggingface_hub.errors import HTTPError

from mixoff.checkpoints.folder import INDEX_NAME
from mixoff.checkpoints.safetensors_read import Shard, header_nbytes, parse_shard, read_shard
from mixoff.checkpoints.source_files import indexed_files
from mixoff.errors import CheckpointError
from mixoff.hub.download import download, first_bytes, partial_of
from mixoff.hub.errors import is_temporary, plain_errors
from mixoff.hub.repository import HubName, RemoteFile, Repository, list_repository
from mixoff.hub.snapshot import Snapshot, cached_snapshot, is_complete
from mixoff.hub.verify import Notes

_SINGLE = "model.safetensors"
_NOTES = ".mixoff-verified.json"
_FIRST_BYTES = 1 << 16  # most headers are shorter, so one request is enough


class HubFiles:
    """The files of a repository at one commit, fetched into a folder when they are needed.

    Settings and headers are fetched at once, weights by `fetch`, which resumes a partial file of an
    earlier run and verifies the result. A commit that is complete in the hub's cache is used there.

    Parameters
    ----------
    name
        ``owner/repository`` or ``owner/repository@revision``.
    folder
        Where files are fetched to.
    keep
        Whether files stay when they are released.

    Attributes
    ----------
    settings
        The folder of the settings, and of the weights.
    name, identity
        The repository with the first digits of its commit, and with the whole commit.
    headers
        The header of each file of weights.

    Raises
    ------
    CheckpointError
        If there is no such repository or revision, the hub can't be reached, its weights are no
        safetensors files, or a file's contents differ from what the hub lists.
    """

    def __init__(self, name: str, folder: str | Path, *, keep: bool) -> None:
        hub_name = HubName.parse(name)
        self._keep = keep
        self._given_name = str(hub_name)
        with plain_errors(self._given_name):
            source = _snapshot_or_repository(hub_name)
            if isinstance(source, Snapshot):
                self._use_snapshot(source)
            else:
                self._begin_fetching(source, Path(folder))
        self.headers: Mapping[str, Shard] = self._read_headers()

    def _use_snapshot(self, snapshot: Snapshot) -> None:
        self._snapshot: Snapshot | None = snapshot
        self._files = {file.name: file for file in snapshot.listed()}
        self.settings = snapshot.folder
        self.name, self.identity = _names(snapshot.repository, snapshot.commit)
        for file in self._files.values():
            if not file.name.endswith(".safetensors"):
                snapshot.verify(file)

    def _begin_fetching(self, repository: Repository, folder: Path) -> None:
        repository.require_safetensors()
        self._snapshot = None
        self._repository = repository
        self._files = dict(repository.files)
        self.settings = folder
        self._notes = Notes(folder / _NOTES)
        self.name, self.identity = _names(repository.name, repository.commit)
        for file in repository.settings:
            self._fetch(file)

    @property
    def nbytes(self) -> Mapping[str, int]:
        """The size of each file of weights, in bytes."""
        return {name: self._files[name].nbytes for name in self.headers}

    @property
    def absent(self) -> Set[str]:
        """The files of weights that aren't here yet."""
        if self._snapshot is not None:
            return frozenset()
        return frozenset(name for name in self.headers if not (self.settings / name).exists())

    @property
    def frees(self) -> bool:
        """Whether `release` removes a fetched file."""
        return self._snapshot is None and not self._keep

    def fetch(self, name: str) -> None:
        """Make sure that a file lies, complete and verified, at its header's path.

        Raises
        ------
        CheckpointError
            If it can't be fetched, or differs from what the hub lists; it is removed then.
        """
        with plain_errors(self._given_name):
            if self._snapshot is not None:
                self._snapshot.verify(self._files[name])
            else:
                self._fetch(self._files[name])

    def release(self, name: str) -> None:
        """Remove a file, unless it is to be kept or lies in the hub's cache."""
        if self.frees:
            with plain_errors(self._given_name):
                (self.settings / name).unlink(missing_ok=True)
                partial_of(self.settings / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all fetched files, unless they are to be kept or lie in the hub's cache."""
        if self.frees:
            for name in self._files:
                self.release(name)
            with suppress(OSError):  # the folder stays if it holds files of others
                (self.settings / _NOTES).unlink(missing_ok=True)
                self.settings.rmdir()

    def _fetch(self, file: RemoteFile) -> None:
        path = self.settings / file.name
        if path.exists() and not self._notes.verify(file, path):
            path.unlink()  # of another commit, or damaged
        if not path.exists():
            download(self._repository, file, path)
            self._notes.verify(file, path)

    def _read_headers(self) -> dict[str, Shard]:
        return {name: self._header(name) for name in self._weights()}

    def _weights(self) -> list[str]:
        index = self.settings / INDEX_NAME
        names = indexed_files(index) if index.exists() else [_SINGLE]
        for name in names:
            if name not in self._files:
                raise CheckpointError(
                    f"{self.name}: {name} isn't in the repository, "
                    f"{'though its index lists it' if index.exists() else 'nor is an index'}: "
                    "choose a repository with a whole model."
                )
        return names

    def _header(self, name: str) -> Shard:
        path, file = self.settings / name, self._files[name]
        if self._snapshot is not None:
            return read_shard(path)
        with plain_errors(self._given_name):
            return remote_header(self._repository, file, path)


def remote_header(repository: Repository, file: RemoteFile, path: Path) -> Shard:
    """Return the header of a file on the hub, fetching little more.

    Parameters
    ----------
    path
        Where the file will lie, for the header and for messages.

    Raises
    ------
    CheckpointError
        If it isn't a safetensors file's header.
    """
    if not file.nbytes:  # an empty range of bytes can't be requested
        header_nbytes(path, b"", 0)  # refuses an empty file
    start = first_bytes(repository, file, min(_FIRST_BYTES, file.nbytes))
    end = 8 + header_nbytes(path, start, file.nbytes)
    if end > len(start):
        start = first_bytes(repository, file, end)
    return parse_shard(path, start[8:end], file.nbytes)


def _names(repository: str, commit: str) -> tuple[str, str]:
    return f"{repository}@{commit[:8]}", f"{repository}@{commit}"


def _snapshot_or_repository(name: HubName) -> Snapshot | Repository:
    """Return the commit's snapshot if it is complete in the cache, else the hub's listing."""
    try:
        repository = list_repository(name)
    except (OSError, HTTPError) as error:
        snapshot = cached_snapshot(name)
        if is_temporary(error) and snapshot and is_complete(snapshot, snapshot.listed()):
            return snapshot
        raise
    snapshot = Snapshot(repository.name, repository.commit)
    if not is_complete(snapshot, repository.files.values()):
        return repository
    snapshot.save_listing(repository, name.revision)
    return snapshot
