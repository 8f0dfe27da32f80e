"""The paths of records between tiers, each behind an object that moves records and times it.

Records move as in a run: by a mover's fetches, read by `DiskReader`, in the threads of `Transfers`.
Knows movers and clocks; knows nothing of which sizes are measured.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal, Protocol

from mixoff.config import Io
from mixoff.tiers.aligned import PAGE, align
from mixoff.tiers.buffers import Buffer, chunks
from mixoff.tiers.cpu import CpuMover
from mixoff.tiers.disk import DiskReader
from mixoff.tiers.gpu import GpuMover
from mixoff.tiers.host import PinnedMemory
from mixoff.tiers.mover import Fetch
from mixoff.tiers.queue import Ticket, Transfers
from mixoff.tiers.record import RecordLocation
from mixoff.tiers.store import RecordStore
from mixoff.tiers.streams import Device

CAN_DROP = hasattr(os, "posix_fadvise")  # whether files can be dropped from the page cache

_NO_LIMIT = 1 << 62  # bytes
_IN_CACHE, _DROPPED, _PAST, _NO_FILE = "in it", "dropped from it", "past it", "no file"


@dataclass(frozen=True)
class TransferPath:
    """Source and target tier, the method, and the part of the file that is in the page cache."""

    source: str
    target: str
    method: str
    page_cache: str


class Route(Protocol):
    """Moves records along one path, or along two (there and back), and times them."""

    paths: tuple[TransferPath, ...]
    num_records: int  # that can be moved

    def move(self, records: Sequence[int]) -> list[float]:
        """Move records concurrently; return, for each path, the seconds until the last arrived."""

    def refusal(self) -> str | None:
        """Return why records were moved by another method than this route's, or None."""

    def close(self) -> None:
        """Release memory and files."""


def record_store(file: Path, nbytes: int, num_records: int, io: Io) -> RecordStore:
    """Return a store of unverified records in a file, each at the start of a page."""
    stride = align(nbytes, PAGE)
    locations = [RecordLocation(file, n * stride, nbytes, None) for n in range(num_records)]
    return RecordStore([locations], DiskReader(io))


class FromDisk:
    """From a file into host memory, as experts are read where the device is the CPU.

    Parameters
    ----------
    file, nbytes, num_records
        The file, the bytes of a record, and the number of records in it.
    transfers
        The threads that read.
    method
        "direct"; "buffered", through the page cache, which must hold the file; "dropped", through
        the page cache after the file was dropped from it.
    """

    def __init__(
        self,
        file: Path,
        nbytes: int,
        num_records: int,
        transfers: Transfers,
        method: Literal["direct", "buffered", "dropped"],
    ) -> None:
        io: Io = "direct" if method == "direct" else "buffered"
        state = {"direct": _PAST, "buffered": _IN_CACHE, "dropped": _DROPPED}[method]
        self.paths: tuple[TransferPath, ...] = (TransferPath("disk", "host", io, state),)
        self.num_records = num_records
        self._file = file
        self._method = method
        self._store = record_store(file, nbytes, num_records, io)
        self._device = CpuMover(self._store, transfers, nbytes=nbytes)
        self._buffers: list[Buffer] = []

    def move(self, records: Sequence[int]) -> list[float]:
        """Read records."""
        while len(self._buffers) < len(records):
            self._buffers.append(self._device.allocate())
        if self._method == "dropped":
            _drop(self._file)
        fetches = [
            Fetch((0, record), buffer)
            for record, buffer in zip(records, self._buffers, strict=False)
        ]
        began = perf_counter()
        _wait(self._device.transfers.submit(self._device.fetch(fetch)) for fetch in fetches)
        return [perf_counter() - began]

    def refusal(self) -> str | None:
        """Return why direct I/O isn't possible here, or None."""
        return self._store.reader.fallbacks

    def close(self) -> None:
        """Close the file."""
        self._device.close()


class WithinHost:
    """From one buffer in host memory to another."""

    paths: tuple[TransferPath, ...] = (TransferPath("host", "host", "copied", _NO_FILE),)

    def __init__(self, nbytes: int, transfers: Transfers) -> None:
        self.num_records = transfers.max_threads
        self._nbytes = nbytes
        self._transfers = transfers
        self._pairs: list[tuple[Buffer, Buffer]] = []

    def move(self, records: Sequence[int]) -> list[float]:
        """Copy this number of records; their indices don't matter."""
        while len(self._pairs) < len(records):
            source, target = (Buffer.for_records(self._nbytes) for _ in range(2))
            source.memory.fill_(1)  # maps its pages, which the first copy would do otherwise
            self._pairs.append((source, target))
        began = perf_counter()
        pairs = self._pairs[: len(records)]
        _wait(self._transfers.submit(self._copy(*pair)) for pair in pairs)
        return [perf_counter() - began]

    def _copy(self, source: Buffer, target: Buffer) -> Iterator[None]:
        for first, last in chunks(0, self._nbytes):
            target.memory[first:last].copy_(source.memory[first:last])
            yield None

    def refusal(self) -> None:
        """Return None: a copy within host memory is always possible."""

    def close(self) -> None:
        """Release memory."""
        self._pairs.clear()


class ToDevice:
    """From host memory to a device with memory of its own, and back.

    The host tier is exclusive, as in a run whose host memory is too small for all records: an
    evicted record is copied back to host memory, from where it is fetched again.

    Parameters
    ----------
    file, nbytes
        The file that records are read from the first time, and the bytes of a record.
    transfers
        The threads that copy to the device.
    device
        Streams and memory.
    pinned
        Whether to pin host memory.
    """

    def __init__(
        self,
        file: Path,
        nbytes: int,
        transfers: Transfers,
        device: Device,
        *,
        pinned: bool,
    ) -> None:
        method = "pinned" if pinned else "pageable"
        self.num_records = transfers.max_threads
        self.paths: tuple[TransferPath, ...] = (
            TransferPath("host", "device", method, _NO_FILE),
            TransferPath("device", "host", method, _NO_FILE),
        )
        self._memory = (PinnedMemory if pinned else _PageableMemory)(device, _NO_LIMIT)
        self._link = GpuMover(
            record_store(file, nbytes, self.num_records, "buffered"),
            transfers,
            device,
            nbytes=nbytes,
            host_buffers=self.num_records,
            inclusive=False,
            pinned=self._memory,
        )
        self._held: dict[int, Buffer] = {}  # the device's buffer of each record that was moved

    def move(self, records: Sequence[int]) -> list[float]:
        """Fetch records from host memory and evict them again."""
        fresh = [record for record in records if record not in self._held]
        if fresh:  # only on disk: without this, the disk's time would be measured, too
            self._held |= {record: self._link.allocate() for record in fresh}
            self._fetch(fresh)
            self._evict(fresh)
        return [self._fetch(records), self._evict(records)]

    def _fetch(self, records: Sequence[int]) -> float:
        fetches = [Fetch((0, record), self._held[record]) for record in records]
        began = perf_counter()
        _wait(self._link.transfers.submit(self._link.fetch(fetch)) for fetch in fetches)
        seconds = self._seconds_until_done(records, began)
        for fetch in fetches:
            self._link.slot_filled(fetch.key)
        return seconds

    def _evict(self, records: Sequence[int]) -> float:
        began = perf_counter()
        evicted = [self._link.evict((0, record), self._held[record]) for record in records]
        _wait(ticket for _, ticket in evicted if ticket is not None)
        return self._seconds_until_done(records, began)

    def _seconds_until_done(self, records: Sequence[int], began: float) -> float:
        # A ticket is done when the copy is queued on a stream; the event, when it has run.
        for record in records:
            if (event := self._held[record].after) is not None:
                event.wait()
        return perf_counter() - began

    def refusal(self) -> str | None:
        """Return why host memory isn't pinned although it should be, or None."""
        return self._memory.notice

    def close(self) -> None:
        """Wait for copies in flight, and release memory."""
        self._link.close()
        self._held.clear()


class _PageableMemory(PinnedMemory):
    """Host memory of which none is pinned on purpose, so that no notice is logged."""

    def allocate(self, nbytes: int) -> Buffer:
        """Return a buffer for records of at most this many bytes."""
        return Buffer.for_records(nbytes)


def _wait(tickets: Iterable[Ticket]) -> None:
    for ticket in list(tickets):  # all are submitted before the first is waited for
        ticket.wait()


def _drop(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
