"""Ranges of files, read past the page cache or through it. Knows files; nothing of records."""

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

from mixoff.config import Io
from mixoff.errors import CheckpointError, MixoffError
from mixoff.tiers.aligned import PAGE
from mixoff.units import format_nbytes

Pread = Callable[[int, Sequence[memoryview], int], int]  # descriptor, buffers, offset: bytes read

_REFUSALS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_READ_ONLY = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # without it Windows translates line ends
_logger = logging.getLogger(__name__)


class SeekingPread:
    """A ``preadv`` for systems without one: seeks and reads, one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # all threads share a descriptor's position

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
    """Reads ranges of files in any number of threads; files stay open until it is closed.

    A file whose file system refuses direct I/O is read through the page cache instead. One notice
    is logged for all such files, and `fallbacks` has the reason.

    Parameters
    ----------
    io
        ``"direct"`` reads past the page cache, straight into the caller's buffer; ``"buffered"``
        reads through it.
    open_file, pread
        Open a file and read from it: the system's own, unless a test injects faults.
    """

    def __init__(
        self,
        io: Io,
        *,
        open_file: Callable[[Path, int], int] = os.open,
        pread: Pread | None = None,
    ) -> None:
        self._requested = io
        self._open_file = open_file
        self._pread = pread or _system_pread()
        self._files: dict[Path, _File] = {}
        self._refused: dict[Path, str] = {}
        self._readers: list[int] = []  # the thread of each read in progress
        self._closed = False
        self._changed = threading.Condition()
        # Of a file that fell back both stay open: another thread may be reading from the first.
        self._descriptors: list[int] = []
        # The finalizer holds the list alone. Were it to hold the reader, or a method of it, the
        # reader would never be collected.
        self._close_files = weakref.finalize(self, _close_all, self._descriptors)

    @property
    def io(self) -> Io:
        """How files are read now: as requested, unless direct I/O was refused for all of them."""
        with self._changed:
            refused = bool(self._refused) and not any(f.direct for f in self._files.values())
        return "buffered" if refused else self._requested

    @property
    def fallbacks(self) -> str | None:
        """Why files are read through the page cache in spite of direct I/O, or None."""
        with self._changed:
            if not self._refused:
                return None
            file, reason = next(iter(self._refused.items()))
            others = len(self._refused) - 1
        more = f", and {others} more" * (others > 0)
        return f"{file}{more}: no direct I/O ({reason}), so the page cache is in between."

    def read(self, file: Path, offset: int, into: memoryview) -> int:
        """Fill a buffer with a file's bytes from `offset` on, and return how many were read.

        They are fewer than the buffer takes only where the file ends; what the buffer holds beyond
        them is undefined. With direct I/O, `offset` and the buffer's length and address are
        multiples of `mixoff.tiers.aligned.PAGE`.

        Raises
        ------
        CheckpointError
            If the file doesn't exist or can't be read.
        MixoffError
            If the reader was closed.
        """
        aligned = self._requested == "buffered" or _is_aligned(offset, into)
        assert aligned, "direct I/O reads whole pages"
        with self._reading():
            try:
                return self._fill(file, offset, into.cast("B"))
            except OSError as error:
                raise CheckpointError(f"{file}: can't be read ({error.strerror}).") from error

    def close(self) -> None:
        """Wait for the reads in progress, then close all files; nothing can be read afterwards.

        If the closing thread is inside a read itself, that read closes the files at its end: then
        garbage collection interrupted it to run the finalizer of a cache, and waiting for it here
        would never end.
        """
        with self._changed:
            self._closed = True
            while set(self._readers) - {threading.get_ident()}:
                self._changed.wait()
            if not self._readers:
                self._close_files()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Keep descriptors open: the system may give a closed one's number to another file."""
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
            if file.direct and count % PAGE:  # the file's end, or no offset for another direct read
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
        if self._requested == "direct" and path not in self._refused:
            try:
                return _File(self._keep_open(_open_direct(self._open_file, path)), direct=True)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                self._refuse(path, str(error.strerror))
        descriptor = self._keep_open(self._open_file(path, _READ_ONLY))
        if hasattr(os, "posix_fadvise"):  # no read-ahead, which would read a record's neighbours
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return _File(descriptor, direct=False)

    def _keep_open(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor

    def _fall_back(self, path: Path, refused: _File, reason: str) -> None:
        with self._changed:
            if self._files[path] is refused:  # else another thread has replaced it already
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
        Bytes of all experts on disk.
    free_memory
        Bytes of host memory that a run leaves free, which the page cache may use.
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
        import fcntl  # Windows has none

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
