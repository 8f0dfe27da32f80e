"""A repository's files at one commit in the hub's cache. Knows the cache's layout.

``models--owner--repository/`` holds ``blobs/HASH``, ``snapshots/COMMIT/NAME`` (links to blobs, or
files where links aren't possible) and ``refs/BRANCH`` (its commit when it was last fetched). A
blob's name is its hash on the hub, so a link gives the expected hash without a network. mixoff adds
``mixoff/COMMIT.json``: which files the hub listed, and which were verified.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from mixoff.errors import CheckpointError
from mixoff.hub.download import download
from mixoff.hub.repository import HubName, RemoteFile, Repository, is_fetched, short_title
from mixoff.hub.verify import Notes

_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_WHOLE_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Snapshot:
    """A repository at a commit in the hub's cache, complete or not.

    Parameters
    ----------
    repository
        The repository's name.
    commit
        The whole hash of the commit.
    """

    def __init__(self, repository: str, commit: str) -> None:
        self._storage = storage_folder(repository)
        self.title = short_title(repository, commit)
        self.repository = repository
        self.commit = commit
        self.folder = self._storage / "snapshots" / commit
        self._notes = Notes(self._storage / "mixoff" / f"{commit}.json")

    def path(self, name: str) -> Path:
        """Return the path of a file, whether it exists or not."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Return whether a file exists, verified or not."""
        return self.path(name).is_file()

    def fetch(self, repository: Repository, file: RemoteFile) -> None:
        """Make sure that a file exists and has the hub's hash.

        Raises
        ------
        CheckpointError
            If the existing or the fetched file has another one; it is removed then.
        """
        if not self.has(file.name):
            blob = self._storage / "blobs" / file.digest
            download(repository, file, blob)
            self._link(file.name, blob)
        self.verify(file)

    def save_listing(self, repository: Repository, revision: str | None) -> None:
        """Save which files the hub listed, and that a branch or tag is at this commit."""
        self._notes.save_listing(repository.files.values())
        revision = revision or constants.DEFAULT_REVISION
        ref = _ref(self._storage, revision)
        if revision != self.commit and ref is not None:
            with suppress(OSError):  # a read-only cache works without it
                ref.parent.mkdir(parents=True, exist_ok=True)
                ref.write_text(self.commit, encoding="utf-8")

    def verify(self, file: RemoteFile) -> None:
        """Compare an existing file with the hub's hash, unless it was verified before.

        Raises
        ------
        CheckpointError
            If it differs; it is removed then.
        """
        path = self.path(file.name)
        if self._notes.verify(file, path):
            return
        with suppress(OSError):
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{self.title}: {file.name} in the hub's cache isn't what the hub has (its hash "
            "differs), so it was removed: run this again with a network to fetch it again."
        )

    def listed(self) -> list[RemoteFile]:
        """Return the files that the hub listed; without a saved listing, the existing ones.

        Raises
        ------
        CheckpointError
            If a file's expected hash is unknown.
        """
        if self._notes.files:
            return list(self._notes.files.values())
        paths = sorted(path for path in self.folder.iterdir() if is_fetched(path.name))
        return [self._file_of_link(path) for path in paths]

    def _file_of_link(self, path: Path) -> RemoteFile:
        # One link only: a blob may itself be a link, into a store with hashes of another kind.
        digest = path.readlink().name if path.is_symlink() else ""
        if not _DIGEST.fullmatch(digest):
            raise CheckpointError(
                f"{self.title}: {path.name} can't be verified without a network: run this once "
                "with one."
            )
        return RemoteFile(path.name, path.stat().st_size if path.exists() else 0, digest)

    def _link(self, name: str, blob: Path) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a link to a blob that is gone
        try:
            path.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:  # Windows requires a privilege for links; the client moves the file, too
            blob.replace(path)


def storage_folder(repository: str) -> Path:
    """Return the cache's folder for a repository."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def folder_title(folder: Path) -> str:
    """Return a checkpoint folder's name: ``owner/repository@1234abcd`` for one in the cache."""
    repository = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    is_cached = folder.parent.name == "snapshots" and bool(repository)
    return short_title(repository, folder.name) if is_cached else folder.name


def cached_nbytes(repository: str) -> int:
    """Return how many bytes of a repository are in the cache, in complete and partial files."""
    blobs = storage_folder(repository) / "blobs"
    return sum(blob.stat().st_size for blob in blobs.glob("*") if blob.is_file())


def cached_snapshot(name: HubName) -> Snapshot | None:
    """Return the cache's snapshot of a name, a branch or tag at the commit it had last; or None."""
    storage, revision = storage_folder(name.repository), name.revision or constants.DEFAULT_REVISION
    commit = _cached_commit(storage, revision)
    if commit is None or not (storage / "snapshots" / commit).is_dir():
        return None
    return Snapshot(name.repository, commit)


def is_complete(snapshot: Snapshot, files: Iterable[RemoteFile]) -> bool:
    """Return whether a snapshot has all files, and there are any."""
    names = [file.name for file in files]
    return bool(names) and all(map(snapshot.has, names))


def _ref(storage: Path, revision: str) -> Path | None:
    """Return the path of a branch's or tag's commit; None for one outside the cache's folder."""
    refs = storage / "refs"
    ref = refs / revision
    return ref if ".." not in ref.parts and refs in ref.parents else None


def _cached_commit(storage: Path, revision: str) -> str | None:
    with suppress(OSError, ValueError):
        ref = _ref(storage, revision)
        if ref is not None and _WHOLE_COMMIT.fullmatch(commit := ref.read_text().strip()):
            return commit
    if not _COMMIT.fullmatch(revision):
        return None
    commits = [path.name for path in (storage / "snapshots").glob(f"{revision}*")]
    return commits[0] if len(commits) == 1 else None
