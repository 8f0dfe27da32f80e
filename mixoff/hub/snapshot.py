"""A repository's files at one commit in the hub's own cache. Knows the cache's layout.

``models--owner--repository/`` holds ``blobs/HASH``, ``snapshots/COMMIT/NAME`` (links to blobs, or
files where links aren't possible) and ``refs/BRANCH`` (the commit that it was). A blob's name is
the hub's hash of it, so a link tells what it should hold, without a network, too. mixoff adds
``mixoff/COMMIT.json``: what the hub listed and what was verified.
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
    """What the cache has of a repository at a commit.

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
        """Return where a file of this name lies, or would."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Return whether a file is here, which says nothing of what is in it."""
        return self.path(name).is_file()

    def fetch(self, repository: Repository, file: RemoteFile) -> None:
        """See that a file is here and what the hub has.

        Raises
        ------
        CheckpointError
            If what is here or what comes isn't it; it is removed then.
        """
        if not self.has(file.name):
            blob = self._storage / "blobs" / file.digest
            download(repository, file, blob)
            self._link(file.name, blob)
        self.verify(file)

    def take_listing(self, repository: Repository, revision: str | None) -> None:
        """Remember what the hub listed, and that a branch or tag is at this commit."""
        self._notes.take_listing(repository.files.values())
        revision = revision or constants.DEFAULT_REVISION
        ref = _ref(self._storage, revision)
        if revision != self.commit and ref is not None:
            with suppress(OSError):  # a read-only cache works without
                ref.parent.mkdir(parents=True, exist_ok=True)
                ref.write_text(self.commit, encoding="utf-8")

    def verify(self, file: RemoteFile) -> None:
        """Compare a file that is here with the hub's hash, unless that was done before.

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
            "differs), so it was removed: run this again with a network to fetch it anew."
        )

    def listed(self) -> list[RemoteFile]:
        """Return the files that belong here: as the hub listed them, else those that are here.

        Raises
        ------
        CheckpointError
            If nothing tells what a file should hold.
        """
        if self._notes.files:
            return list(self._notes.files.values())
        paths = sorted(path for path in self.folder.iterdir() if is_fetched(path.name))
        return [self._told_by_link(path) for path in paths]

    def _told_by_link(self, path: Path) -> RemoteFile:
        # One step only: a blob may be a link itself, into a store with hashes of another kind.
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
        except OSError:  # Windows asks for a privilege: the client moves the file then, too
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
    """Return how many bytes of a repository are in the cache, of whole files and begun ones."""
    blobs = storage_folder(repository) / "blobs"
    return sum(blob.stat().st_size for blob in blobs.glob("*") if blob.is_file())


def cached_snapshot(name: HubName) -> Snapshot | None:
    """Return what the cache has for a name: a branch or tag as it was when last asked for."""
    storage, revision = storage_folder(name.repository), name.revision or constants.DEFAULT_REVISION
    commit = _cached_commit(storage, revision)
    if commit is None or not (storage / "snapshots" / commit).is_dir():
        return None
    return Snapshot(name.repository, commit)


def is_whole(snapshot: Snapshot, files: Iterable[RemoteFile]) -> bool:
    """Return whether all files are here."""
    names = [file.name for file in files]
    return bool(names) and all(map(snapshot.has, names))


def _ref(storage: Path, revision: str) -> Path | None:
    """Return where the cache keeps a branch's or tag's commit, or None outside of its folder."""
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
    found = [path.name for path in (storage / "snapshots").glob(f"{revision}*")]
    return found[0] if len(found) == 1 else None
