"""Whether a file is what the hub has. Knows hashes, and what was verified before."""

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
_LONG = 1 << 30  # bytes whose hash takes long enough for a progress bar
_SHA256_DIGITS = 64


def digest_of(path: Path, like: str) -> str:
    """Return a file's hash of the kind that another is: SHA-256, or git's SHA-1 of a blob."""
    nbytes = path.stat().st_size
    found = hashlib.sha256()
    if len(like) != _SHA256_DIGITS:
        found = hashlib.sha1(f"blob {nbytes}\0".encode(), usedforsecurity=False)
    hidden = True if nbytes < _LONG else None  # None: where stderr is no terminal
    with (
        path.open("rb") as file,
        tqdm(  # type: ignore[no-untyped-call]
            total=nbytes, unit="B", unit_scale=True, desc=f"verifying {path.name}", disable=hidden
        ) as bar,
    ):
        while chunk := file.read(_CHUNK):
            found.update(chunk)
            bar.update(len(chunk))
    return found.hexdigest()


class Notes:
    """Which files of a folder were verified, kept in a file so that it is done once.

    A file counts as verified while its size and its times (of contents and of the entry) are those
    that were noted; whatever changed is verified again. What can't be read or written is forgotten.

    Parameters
    ----------
    path
        Where the notes lie.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = _read(path)

    @property
    def files(self) -> dict[str, RemoteFile]:
        """The files that the hub listed, when it was asked."""
        return {
            name: RemoteFile(name, noted["nbytes"], noted["digest"])
            for name, noted in self._files.items()
        }

    def take_listing(self, files: Iterable[RemoteFile]) -> None:
        """Note which files the hub lists; what was verified stays so."""
        before = self._files
        self._files = {file.name: _entry(file, before.get(file.name)) for file in files}
        if self._files != before:
            self._write()

    def verify(self, file: RemoteFile, path: Path) -> bool:
        """Return whether a file is what the hub has, reading it unless it is noted."""
        seen = _seen(path)
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
        with suppress(OSError):  # a cache that is read-only: it is verified again next time
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(text, encoding="utf-8")
            new.replace(self._path)


def _seen(path: Path) -> list[int]:
    told = path.stat()
    return [told.st_size, told.st_mtime_ns, told.st_ctime_ns]


def _entry(file: RemoteFile, before: Mapping[str, Any] | None) -> dict[str, Any]:
    seen = before["seen"] if before and before["digest"] == file.digest else None
    return {"nbytes": file.nbytes, "digest": file.digest, "seen": seen}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a file of notes holds, or nothing if it isn't as it was written."""
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
