"""Verification of files by the hub's hashes. Knows hashes, and which files were verified before."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub.utils import tqdm

from mixoff.hub.repository import RemoteFile

_FORMAT = 1
_CHUNK = 1 << 20
_LONG = 1 << 30  # bytes: hashing more takes long enough for a progress bar
_SHA256_DIGITS = 64


def digest_of(path: Path, like: str) -> str:
    """Return a file's hash of the same kind as `like`: SHA-256, or git's SHA-1 of a blob."""
    nbytes = path.stat().st_size
    digest = hashlib.sha256()
    if len(like) != _SHA256_DIGITS:
        digest = hashlib.sha1(f"blob {nbytes}\0".encode(), usedforsecurity=False)
    hidden = True if nbytes < _LONG else None  # None hides the bar if stderr is no terminal
    with (
        path.open("rb") as file,
        tqdm(  # type: ignore[no-untyped-call]
            total=nbytes, unit="B", unit_scale=True, desc=f"verifying {path.name}", disable=hidden
        ) as bar,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


class Notes:
    """Notes in a file about which files of a folder were verified, so that each is hashed once.

    A file counts as verified while its size and its times (of contents and of the inode) are those
    that were noted; a changed file is verified again. Unreadable notes count as none.

    Parameters
    ----------
    path
        The file of the notes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = _read(path)

    @property
    def files(self) -> dict[str, RemoteFile]:
        """The files in the saved listing of the hub."""
        return {
            name: RemoteFile(name, noted["nbytes"], noted["digest"])
            for name, noted in self._files.items()
        }

    def save_listing(self, files: Iterable[RemoteFile]) -> None:
        """Save which files the hub lists; files with an unchanged hash stay verified."""
        before = self._files
        self._files = {file.name: _entry(file, before.get(file.name)) for file in files}
        if self._files != before:
            self._write()

    def verify(self, file: RemoteFile, path: Path) -> bool:
        """Return whether a file has the hub's hash; it is read unless it was verified before."""
        seen = _size_and_times(path)
        noted = self._files.get(file.name, {})
        if noted.get("digest") == file.digest and noted.get("seen") == seen:
            return True
        if path.stat().st_size != file.nbytes or digest_of(path, file.digest) != file.digest:
            return False
        self._files[file.name] = _entry(file, None) | {"seen": seen}
        self._write()
        return True

    def _write(self) -> None:
        text = json.dumps({"format": _FORMAT, "files": self._files}, indent=1)
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with suppress(OSError):  # a read-only cache: files are verified again next time
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(text, encoding="utf-8")
            new.replace(self._path)


def _size_and_times(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _entry(file: RemoteFile, before: Mapping[str, Any] | None) -> dict[str, Any]:
    seen = before["seen"] if before and before["digest"] == file.digest else None
    return {"nbytes": file.nbytes, "digest": file.digest, "seen": seen}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return a file's notes, or none if they are missing or not in this format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            return {}
        return {
            str(name): {
                "nbytes": int(noted["nbytes"]),
                "digest": str(noted["digest"]),
                "seen": noted["seen"],
            }
            for name, noted in content["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
