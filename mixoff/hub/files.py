"""An original's files, from the hub one by one. Knows headers and whole files; no tensors."""

from collections.abc import Mapping, Set
from contextlib import suppress
from pathlib import Path

from huggingface_hub.errors import HTTPError

from mixoff.checkpoints.folder import INDEX_NAME
from mixoff.checkpoints.safetensors_read import Shard, header_nbytes, parse_shard, read_shard
from mixoff.checkpoints.source_files import indexed_files
from mixoff.errors import CheckpointError
from mixoff.hub.download import download, first_bytes, partial_of
from mixoff.hub.errors import is_passing, plain_errors
from mixoff.hub.repository import HubName, RemoteFile, Repository, ask_hub
from mixoff.hub.snapshot import Snapshot, cached_snapshot, is_whole
from mixoff.hub.verify import Notes

_SINGLE = "model.safetensors"
_NOTES = ".mixoff-verified.json"
_FIRST_BYTES = 1 << 16  # most headers are shorter, so one request is enough


class HubFiles:
    """The files of a repository at one commit, fetched into a folder when they are needed.

    Settings and headers are fetched at once, weights by `fetch`, which goes on with what an earlier
    run began and verifies what came. What the hub's cache has whole is used from there.

    Parameters
    ----------
    name
        ``owner/repository`` or ``owner/repository@revision``.
    folder
        Where files come to lie.
    keep
        Whether files stay when they are released.

    Raises
    ------
    CheckpointError
        If there is no such repository or revision, the hub can't be reached, its weights are no
        safetensors files, or a file isn't what the hub lists.
    """

    def __init__(self, name: str, folder: str | Path, *, keep: bool) -> None:
        asked = HubName.parse(name)
        self._keep = keep
        self._called = str(asked)
        with plain_errors(self._called):
            found = _whole_snapshot(asked)
            if isinstance(found, Snapshot):
                self._use(found)
            else:
                self._begin_fetching(found, Path(folder))
        self.headers: Mapping[str, Shard] = self._read_headers()

    def _use(self, snapshot: Snapshot) -> None:
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
        """The size of each file of weights."""
        return {name: self._files[name].nbytes for name in self.headers}

    @property
    def absent(self) -> Set[str]:
        """The files of weights that aren't here yet."""
        here = self._snapshot is not None
        return frozenset(
            name for name in self.headers if not here and not (self.settings / name).exists()
        )

    @property
    def frees(self) -> bool:
        """Whether `release` removes a file that `fetch` brought."""
        return self._snapshot is None and not self._keep

    def fetch(self, name: str) -> None:
        """See that a file lies, whole and verified, at its header's path.

        Raises
        ------
        CheckpointError
            If it can't be had, or isn't what the hub lists; it is removed then.
        """
        with plain_errors(self._called):
            if self._snapshot is not None:
                self._snapshot.verify(self._files[name])
            else:
                self._fetch(self._files[name])

    def release(self, name: str) -> None:
        """Remove a file, unless it is to be kept or lies in the hub's cache."""
        if self.frees:
            with plain_errors(self._called):
                (self.settings / name).unlink(missing_ok=True)
                partial_of(self.settings / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all that was fetched, unless it is to be kept or lies in the hub's cache."""
        if self.frees:
            for name in self._files:
                self.release(name)
            with suppress(OSError):  # what else lies there isn't ours
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
        with plain_errors(self._called):
            return remote_header(self._repository, file, path)


def remote_header(repository: Repository, file: RemoteFile, path: Path) -> Shard:
    """Return the header of a file on the hub, fetching little more; path is where it will lie."""
    if not file.nbytes:  # no range of bytes could be asked for
        header_nbytes(path, b"", 0)  # refuses it
    start = first_bytes(repository, file, min(_FIRST_BYTES, file.nbytes))
    end = 8 + header_nbytes(path, start, file.nbytes)
    if end > len(start):
        start = first_bytes(repository, file, end)
    return parse_shard(path, start[8:end], file.nbytes)


def _names(repository: str, commit: str) -> tuple[str, str]:
    return f"{repository}@{commit[:8]}", f"{repository}@{commit}"


def _whole_snapshot(asked: HubName) -> Snapshot | Repository:
    """Return what the cache has, if that is all of the commit; else what the hub lists."""
    try:
        repository = ask_hub(asked)
    except (OSError, HTTPError) as error:
        snapshot = cached_snapshot(asked)
        if is_passing(error) and snapshot and is_whole(snapshot, snapshot.listed()):
            return snapshot
        raise
    snapshot = Snapshot(repository.name, repository.commit)
    if not is_whole(snapshot, repository.files.values()):
        return repository
    snapshot.take_listing(repository, asked.revision)
    return snapshot
