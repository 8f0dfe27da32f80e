"""Ways between the tiers that records can be sent on, to see how long they take. Knows no sizes.

Each way moves records as a run does: by a mover's fetches, read by `DiskReader`, in the threads of
`Transfers`.
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

CAN_DROP = hasattr(os, "posix_fadvise")  # pages of a file out of the page cache

_NO_LIMIT = 1 << 62  # bytes
_IN_CACHE, _DROPPED, _PAST, _NO_FILE = "in it", "dropped from it", "past it", "no file"


@dataclass(frozen=True)
class Way:
    """From which tier to which, and how; what of a file was in the page cache."""

    source: str
    target: str
    method: str
    page_cache: str


class Route(Protocol):
    """Moves records on one way, or there and back, and times it."""

    ways: tuple[Way, ...]
    num_records: int  # there are

    def move(self, records: Sequence[int]) -> list[float]:
        """Move records at once; return the seconds until the last one was there, way by way."""

    def refusal(self) -> str | None:
        """Return why records weren't moved as they were to be, or None."""

    def close(self) -> None:
        """Give memory and files back."""


def record_store(file: Path, nbytes: int, num_records: int, io: Io) -> RecordStore:
    """Return a store of so many records, each on a page behind the one before, unverified."""
    stride = align(nbytes, PAGE)
    places = [RecordLocation(file, place * stride, nbytes, None) for place in range(num_records)]
    return RecordStore([places], DiskReader(io))


class FromDisk:
    """From a file into host memory, as a device that computes there reads its experts.

    Parameters
    ----------
    file, nbytes, num_records
        Where records lie, one behind the other.
    transfers
        Moves them.
    method
        "direct"; "buffered", through the page cache, which must hold the file; "dropped", through
        a page cache that is asked each time to drop the file.
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
        self.ways: tuple[Way, ...] = (Way("disk", "host", io, state),)
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
        """Return why there was no direct I/O, if there was to be."""
        return self._store.reader.fallbacks

    def close(self) -> None:
        """Close the file."""
        self._device.close()


class WithinHost:
    """From one place in host memory to another one."""

    ways: tuple[Way, ...] = (Way("host", "host", "copied", _NO_FILE),)

    def __init__(self, nbytes: int, transfers: Transfers) -> None:
        self.num_records = transfers.max_threads
        self._nbytes = nbytes
        self._transfers = transfers
        self._pairs: list[tuple[Buffer, Buffer]] = []

    def move(self, records: Sequence[int]) -> list[float]:
        """Copy as many records; which ones makes no difference."""
        while len(self._pairs) < len(records):
            source, target = (Buffer.for_records(self._nbytes) for _ in range(2))
            source.memory.fill_(1)  # or its pages aren't there before the first copy
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
        """Return None."""

    def close(self) -> None:
        """Give memory back."""
        self._pairs.clear()


class ToDevice:
    """From host memory to a device with memory of its own, and back.

    Host memory is exclusive, as where it is too small for all records: one that leaves the device
    goes back there, and comes from there again.

    Parameters
    ----------
    file, nbytes
        Where records come from the first time.
    transfers
        Moves them to the device.
    device
        Streams and memory.
    pinned
        Whether host memory is to be pinned.
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
        there, back = ("host", "device"), ("device", "host")
        self.num_records = transfers.max_threads
        self.ways: tuple[Way, ...] = (Way(*there, method, _NO_FILE), Way(*back, method, _NO_FILE))
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
        self._held: dict[int, Buffer] = {}  # buffers of the device, by the record that was in them

    def move(self, records: Sequence[int]) -> list[float]:
        """Fetch records and let them go again; those not in host memory yet get there first."""
        fresh = [record for record in records if record not in self._held]
        if fresh:
            self._held |= {record: self._link.allocate() for record in fresh}
            self._fetch(fresh)
            self._leave(fresh)
        return [self._fetch(records), self._leave(records)]

    def _fetch(self, records: Sequence[int]) -> float:
        fetches = [Fetch((0, record), self._held[record]) for record in records]
        began = perf_counter()
        _wait(self._link.transfers.submit(self._link.fetch(fetch)) for fetch in fetches)
        took = self._until_done(records, began)
        for fetch in fetches:
            self._link.slot_filled(fetch.key)
        return took

    def _leave(self, records: Sequence[int]) -> float:
        began = perf_counter()
        left = [self._link.evict((0, record), self._held[record]) for record in records]
        _wait(ticket for _, ticket in left if ticket is not None)
        return self._until_done(records, began)

    def _until_done(self, records: Sequence[int], began: float) -> float:
        for record in records:
            if (event := self._held[record].after) is not None:
                event.wait()
        return perf_counter() - began

    def refusal(self) -> str | None:
        """Return why memory isn't pinned, if it was to be."""
        return self._memory.notice

    def close(self) -> None:
        """Wait for what is under way, and give memory back."""
        self._link.close()
        self._held.clear()


class _PageableMemory(PinnedMemory):
    """Host memory none of which is pinned, as was asked for: nobody has to be told."""

    def allocate(self, nbytes: int) -> Buffer:
        """Return a buffer for records of up to so many bytes."""
        return Buffer.for_records(nbytes)


def _wait(tickets: Iterable[Ticket]) -> None:
    for ticket in list(tickets):  # all are asked for before the first is waited for
        ticket.wait()


def _drop(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
