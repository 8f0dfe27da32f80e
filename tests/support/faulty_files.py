"""Files that fail at one operation, or end the process there, with a count of all operations.

Python's own functions are replaced: `io.open`, which `Path.open` calls, and functions of `os`.
Operations on paths below a folder count, and all on descriptors.
"""

import builtins
import errno
import fcntl
import io
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_FUNCTIONS = (
    *("open", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "stat", "lstat", "fstat"),
    *("listdir", "scandir", "statvfs", "close"),
)


class FaultyFiles:
    """Counts operations below a folder, and makes one of them fail.

    Parameters
    ----------
    folder
        Where operations count.
    number
        Which operation fails, from 0; with None, none does.
    fault
        An error's number; "short" reads or writes half of the request; "kill" ends the process.
    """

    def __init__(
        self, folder: Path, number: int | None = None, fault: int | str = errno.EIO
    ) -> None:
        self.folder = str(folder)
        self.number, self.fault = number, fault
        self.done: list[tuple[str, str]] = []  # operation and path, in order
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> "FaultyFiles":
        for name in _FUNCTIONS:
            self._patch.setattr(os, name, self._counted(name, getattr(os, name)))
        self._patch.setattr(fcntl, "flock", self._counted("flock", fcntl.flock))
        self._patch.setattr(io, "open", self._open)
        self._patch.setattr(builtins, "open", self._open)
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.undo()

    @property
    def counts(self) -> Counter[str]:
        return Counter(name for name, _ in self.done)

    def happens(self, name: str, what: object) -> bool:
        """Count an operation; return whether it is to be a short one."""
        self.done.append((name, str(what)))
        if len(self.done) - 1 != self.number:
            return False
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "short":
            return True
        assert isinstance(self.fault, int)
        message = os.strerror(self.fault)
        named = isinstance(what, str | Path)  # as the system does, but not of a descriptor
        raise OSError(self.fault, message, str(what)) if named else OSError(self.fault, message)

    def counts_path(self, path: object) -> bool:
        if isinstance(path, int):
            return True
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if self.counts_path(path):
                if name == "close":  # it closes even if it fails
                    function(path)
                    self.happens(name, path)
                    return None
                self.happens(name, path)
            return function(path, *args, **kwargs)

        return call

    def _open(self, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(path, int) or not self.counts_path(path):
            return _real_open(path, mode, *args, **kwargs)
        self.happens("open file", path)
        raw = _Raw(self, os.fspath(path), mode.replace("b", ""))
        buffered = io.BufferedWriter(raw) if "w" in mode else io.BufferedReader(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")


_real_open = io.open


class _Raw(io.FileIO):
    """A file whose reads and writes count."""

    def __init__(self, files: FaultyFiles, path: str, mode: str) -> None:
        self._files = files
        super().__init__(path, mode)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        short = self._files.happens("read", self.name) and len(view) > 1
        return super().readinto(view[: len(view) // 2] if short else view)

    def readall(self) -> bytes:
        self._files.happens("read", self.name)
        return super().readall()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        short = self._files.happens("write", self.name) and len(view) > 1
        return super().write(view[: len(view) // 2] if short else view)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._files.happens("seek", self.name)
        return super().seek(offset, whence)
