"""Ranges of bytes out of files, past the page cache or through it. Knows files, not records."""

import ctypes
import errno
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

from mixoff.errors import CheckpointError, MixoffError
from mixoff.tiers.aligned import PAGE
from mixoff.units import format_nbytes

Io = Literal["direct", "buffered"]
Pread = Callable[[int, Sequence[memoryview], int], int]  # descriptor, buffers, offset: bytes read

_REFUSALS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_READ_ONLY = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # Windows reads text unless told not to
_logger = logging.getLogger(__name__)


class SeekingPread:
    """Reads at an offset where the system has no ``preadv``: seeks, then reads, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a descriptor has one position for all threads

    def __call__(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the first buffer from `offset` and return how many bytes were read."""
        with self._lock, FileIO(descriptor, closefd=False) as file:
            file.seek(offset)
            return file.readinto(buffers[0]) or 0


@dataclass(frozen=True)
class _File:
    descriptor: int
    direct: bool


class DiskReader:
    """Reads ranges of files from any number of threads; files stay open until it is closed.

    A file whose file system refuses direct I/O is read through the page cache instead, with one
    logged notice; `fallbacks` tells of it.

    Parameters
    ----------
    io
        ``"direct"`` reads past the page cache, into the caller's buffer without a copy;
        ``"buffered"`` reads through it.
    open_file, pread
        What opens and what reads: the system's own, unless a test injects faults.
    """

    def __init__(
        self,
        io: Io,
        *,
        open_file: Callable[[Path, int], int] = os.open,
        pread: Pread | None = None,
    ) -> None:
        self._asked = io
        self._open_file = open_file
        self._pread = pread or _system_pread()
        self._files: dict[Path, _File] = {}
        self._refused: dict[Path, str] = {}
        self._readers: list[int] = []  # the thread of each read under way
        self._closed = False
        self._changed = threading.Condition()
        descriptors: list[int] = []  # a file that fell back has two: a thread may be reading it
        self._descriptors = descriptors
        self._close_files = weakref.finalize(self, _close_all, descriptors)

    @property
    def io(self) -> Io:
        """How files are read now: as asked for, unless direct I/O was refused for all of them."""
        with self._changed:
            refused = bool(self._refused) and not any(f.direct for f in self._files.values())
        return "buffered" if refused else self._asked

    @property
    def fallbacks(self) -> str | None:
        """Why files are read through the page cache that were to be read past it, or None."""
        with self._changed:
            if not self._refused:
                return None
            file, reason = next(iter(self._refused.items()))
            others = len(self._refused) - 1
        more = f", and {others} more" * (others > 0)
        return f"{file}{more}: no direct I/O ({reason}), so the page cache is in between."

    def read(self, file: Path, offset: int, into: memoryview) -> int:
        """Fill a buffer with a file's bytes from `offset` on, and return how many there were.

        Fewer than the buffer takes were there only if the file ends; what the buffer holds beyond
        them means nothing. With direct I/O, `offset` and the buffer's length and address are
        multiples of `mixoff.tiers.aligned.PAGE`.

        Raises
        ------
        CheckpointError
            If the file is gone or can't be read.
        MixoffError
            If the reader was closed.
        """
        assert self._asked == "buffered" or _is_aligned(offset, into), "direct I/O wants pages"
        with self._reading():
            try:
                return self._fill(file, offset, into.cast("B"))
            except OSError as error:
                raise CheckpointError(f"{file}: can't be read ({error.strerror}).") from error

    def close(self) -> None:
        """Wait for the reads under way, then close all files; nothing can be read afterwards.

        A read of the closing thread's own, which garbage collection may interrupt to close what
        nobody holds any longer, closes them at its end.
        """
        with self._changed:
            self._closed = True
            while set(self._readers) - {threading.get_ident()}:
                self._changed.wait()
            if not self._readers:
                self._close_files()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Keep descriptors open: a closed one's number may soon be another file's."""
        with self._changed:
            if self._closed:
                raise MixoffError("this disk reader was closed: build the model again.")
            self._readers.append(threading.get_ident())
        try:
            yield
        finally:
            with self._changed:
                self._readers.remove(threading.get_ident())
                if self._closed and not self._readers:
                    self._close_files()
                self._changed.notify_all()

    def _fill(self, path: Path, offset: int, into: memoryview) -> int:
        done = 0
        while done < len(into):
            file = self._opened(path)
            try:
                count = self._pread(file.descriptor, [into[done:]], offset + done)
            except InterruptedError:
                continue
            except OSError as error:
                if not (file.direct and error.errno in _REFUSALS):
                    raise
                self._fall_back(path, file, str(error.strerror))
                continue
            done += count
            if not count:
                break
            if file.direct and count % PAGE:  # at the file's end, or no place to go on from
                if offset + done >= os.fstat(file.descriptor).st_size:
                    break
                self._fall_back(path, file, f"a read ended after {count} bytes, inside a page")
        return done

    def _opened(self, path: Path) -> _File:
        with self._changed:
            if path not in self._files:
                self._files[path] = self._open(path)
            return self._files[path]

    def _open(self, path: Path) -> _File:
        if self._asked == "direct" and path not in self._refused:
            try:
                return _File(self._kept(_open_direct(self._open_file, path)), direct=True)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                self._refuse(path, str(error.strerror))
        descriptor = self._kept(self._open_file(path, _READ_ONLY))
        if hasattr(os, "posix_fadvise"):  # without read-ahead a record's neighbours aren't read
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return _File(descriptor, direct=False)

    def _kept(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor

    def _fall_back(self, path: Path, refused: _File, reason: str) -> None:
        with self._changed:
            if self._files[path] is refused:  # else another thread was here first
                self._refuse(path, reason)
                self._files[path] = self._open(path)

    def _refuse(self, path: Path, reason: str) -> None:
        if not self._refused:
            _logger.warning("%s: no direct I/O (%s): reading through the page cache.", path, reason)
        self._refused[path] = reason


def choose_io(expert_nbytes: int, free_memory: int) -> tuple[Io, str]:
    """Return how to read experts from disk, and why: past the page cache if it can't hold them.

    Parameters
    ----------
    expert_nbytes
        All experts on disk.
    free_memory
        What a run leaves free of host memory, and so to the page cache.
    """
    experts, free = format_nbytes(expert_nbytes), format_nbytes(max(free_memory, 0))
    if expert_nbytes > free_memory:
        return "direct", f"the experts take {experts}, more than the {free} left to a page cache"
    return "buffered", f"a page cache of the {free} left free holds the experts' {experts}"


def _is_aligned(offset: int, into: memoryview) -> bool:
    address = ctypes.addressof(ctypes.c_char.from_buffer(into)) if into.nbytes else 0
    return not (offset % PAGE or into.nbytes % PAGE or address % PAGE)


def _system_pread() -> Pread:
    return os.preadv if hasattr(os, "preadv") else SeekingPread()


def _open_direct(open_file: Callable[[Path, int], int], path: Path) -> int:
    if hasattr(os, "O_DIRECT"):
        return open_file(path, _READ_ONLY | os.O_DIRECT)
    if sys.platform == "darwin":
        import fcntl  # not everywhere

        descriptor = open_file(path, _READ_ONLY)
        try:
            fcntl.fcntl(descriptor, fcntl.F_NOCACHE, 1)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    raise OSError(errno.ENOTSUP, "this system has none")


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
