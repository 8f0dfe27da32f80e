"""Moves records to and from a device with memory of its own. Knows streams and events; no layers.

Work on a buffer is ordered by events, without the host: a copy into a buffer follows the compute
and the copies that used it before, and compute follows the copy. Each buffer has the last event of
its use in `Buffer.after`. The host itself waits for an event only before the disk overwrites host
memory that a copy may still be reading, and before a CPU reads host memory that one may be filling.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from mixoff.tiers.aligned import PAGE, align
from mixoff.tiers.buffers import Buffer, chunks
from mixoff.tiers.host import HostStore, PinnedMemory
from mixoff.tiers.mover import Fetch, Mover
from mixoff.tiers.queue import Ticket, Transfers
from mixoff.tiers.record import Key
from mixoff.tiers.store import RecordStore
from mixoff.tiers.streams import Device, Event, Stream
from mixoff.trace.events import Span

_IN_FLIGHT = 2  # chunks at once: while one is copied, the next is already in the stream


def bounce_buffers(threads: int) -> int:
    """Return how many host buffers records pass through from disk, with so many worker threads.

    A fetch holds its buffer from its first step to its last. Each worker thread and a waiting
    thread may be inside one fetch, and each may have begun another that a demand overtook.
    """
    return 2 * (threads + 1)


class GpuMover(Mover):
    """A device with memory of its own, filled from host memory and from disk through host memory.

    Parameters
    ----------
    store
        Reads records from disk.
    transfers
        Runs the copies to the device.
    device
        Streams and memory.
    nbytes
        Bytes of the largest record.
    host_buffers
        How many records host memory may hold.
    inclusive
        Whether host memory keeps the records that are on the device, so that an eviction moves no
        bytes. Otherwise it is exclusive: a record is in one of them, and an evicted one is copied
        to host memory.
    pinned
        Allocates host memory.
    """

    extra_buffers = 0
    reserved_threads = 0  # the device's copy engines move the bytes

    def __init__(
        self,
        store: RecordStore,
        transfers: Transfers,
        device: Device,
        *,
        nbytes: int,
        host_buffers: int,
        inclusive: bool,
        pinned: PinnedMemory,
    ) -> None:
        self.transfers = transfers
        # A queue of its own for the link's other direction.
        self._write_back_queue = Transfers()
        self.host = HostStore(host_buffers, lambda: pinned.allocate(nbytes))
        self._store = store
        self._device = device
        self._nbytes = nbytes
        self._inclusive = inclusive
        self._pinned = pinned
        # Bounce buffers: a record from disk passes through one if host memory won't keep it.
        bounces = bounce_buffers(transfers.max_threads)
        self._bounce = HostStore(bounces, lambda: pinned.allocate(nbytes))
        self._write_backs: dict[Key, Ticket] = {}  # of evicted records, ended or not

    def allocate(self) -> Buffer:
        """Return a new buffer of the device."""
        with torch.inference_mode(False):  # transfer threads write into it outside the mode
            return Buffer(self._device.allocate(align(self._nbytes, PAGE) + PAGE))

    def nbytes(self, key: Key) -> int:
        """Return the bytes of a record."""
        return self._store.nbytes(*key)

    def fetch(self, fetch: Fetch) -> Iterator[object]:
        """Copy a record into a buffer of the device, from host memory if it is there."""
        if (kept := self.host.borrow(fetch.key)) is not None:
            fetch.tier = "host"
            try:
                # The host buffer's event exists only once all of the write-back is in its stream.
                if (ticket := self._write_backs.get(fetch.key)) is not None:
                    ticket.wait()
                yield from self._copy(fetch, kept, chunks(0, self._extent(fetch.key, kept)))
            finally:
                self.host.give_back(kept)
            return
        reserved = self.host.reserve() if self._inclusive else None
        buffer, owner = (reserved, self.host) if reserved is not None else self._bounce_buffer()
        is_kept = False
        try:
            if buffer.after is not None:  # a copy to the device may still be reading it
                buffer.after.wait()
            yield from self._copy(fetch, buffer, self._store.read(*fetch.key, buffer))
            if reserved is not None:
                self.host.keep(fetch.key, buffer)
                is_kept = True
        finally:
            if not is_kept:
                owner.release(buffer)

    def before_use(self, buffer: Buffer) -> Span:
        """Order compute after the copy into a buffer, and return how long it then waits."""
        compute = self._device.compute
        begun = compute.record()
        compute.follow(buffer.after)
        ended = compute.record()
        return lambda: _span(begun, ended)

    def in_host_memory(self, key: Key) -> bool:
        """Return whether host memory holds the record."""
        return key in self.host

    def borrow(self, key: Key) -> Buffer:
        """Return the host buffer of a record that is in host memory; it stays until `give_back`."""
        buffer = self.host.borrow(key)
        assert buffer is not None, "only records that are in host memory are borrowed"
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        """End what `borrow` began."""
        self.host.give_back(buffer)

    def wait_until_in_host_memory(self, key: Key, buffer: Buffer) -> None:
        """Wait until an evicted record's write-back, if it had one, has filled a host buffer."""
        if (ticket := self._write_backs.get(key)) is not None:
            ticket.wait()  # all copies are in their stream
            if buffer.after is not None:
                buffer.after.wait()  # and have ended

    def slot_filled(self, key: Key) -> None:
        """Free the host buffer of a record that is on the device now, if memory is exclusive."""
        self._write_backs.pop(key, None)
        if not self._inclusive:
            self.host.forget(key)

    def evict(self, key: Key, buffer: Buffer) -> tuple[Buffer | None, Ticket | None]:
        """Drop a record that host memory holds or can't hold, else copy it to host memory."""
        # Compute may still be reading the record: whatever uses the buffer next follows this.
        buffer.after = self._device.compute.record()
        if self._inclusive or key in self.host or (host := self._host_buffer()) is None:
            return buffer, None
        host.start = buffer.start
        # It counts as kept from now on, though it is still on its way: a demand of it finds its
        # ticket in `_write_backs` and waits for that.
        self.host.keep(key, host)
        ticket = self._write_back_queue.submit(self._write_back(key, buffer, host))
        self._write_backs[key] = ticket
        return buffer, ticket

    def facts(self) -> dict[str, Any]:
        """Return how the disk is read, and why part of the host memory isn't pinned."""
        return self._store.facts() | {"pinned_notice": self._pinned.notice}

    def close(self) -> None:
        """Wait for the copies in flight, release host memory and close the files."""
        self._write_back_queue.close()
        for stream in (self._device.inward, self._device.outward, self._device.compute):
            stream.record().wait()
        self.host.clear()
        self._bounce.clear()
        self._store.close()

    def _extent(self, key: Key, buffer: Buffer) -> int:
        """Return the bytes from the buffer's first to the end of the record's last page."""
        return align(buffer.start + self._store.nbytes(*key), PAGE)

    def _bounce_buffer(self) -> tuple[Buffer, HostStore]:
        buffer = self._bounce.reserve()
        assert buffer is not None, "there are as many bounce buffers as fetches can have begun"
        return buffer, self._bounce

    def _host_buffer(self) -> Buffer | None:
        """Return a host buffer for a victim: a spare one, or that of the oldest record there."""
        if (spare := self.host.reserve()) is not None:
            return spare
        if (displaced := self.host.displace()) is None:
            return None
        key, buffer = displaced
        if (ticket := self._write_backs.pop(key, None)) is not None:
            ticket.settle()  # or two write-backs would fill the buffer at once
        return buffer

    def _copy(
        self, fetch: Fetch, source: Buffer, parts: Iterator[tuple[int, int]]
    ) -> Iterator[object]:
        """Copy parts of a host buffer to the device as they become ready."""
        stream, target = self._device.inward, fetch.buffer
        nbytes = self._store.nbytes(*fetch.key)
        stream.follow(target.after)  # compute, or a write-back, may still be reading the target
        stream.follow(source.after)  # a write-back may still be filling the source
        begun = stream.record()
        try:
            for _, last in _throttled(stream, source, target, parts):
                target.start = source.start
                fetch.nbytes = min(last - source.start, nbytes)
                if fetch.nbytes < nbytes:
                    yield None
        finally:  # a fetch that is cancelled or fails may have copies in the stream, too
            ended = source.after = target.after = stream.record()
            fetch.span = lambda: _span(begun, ended)

    def _write_back(self, key: Key, source: Buffer, target: Buffer) -> Iterator[object]:
        """Copy a buffer of the device to a host buffer."""
        stream = self._device.outward
        stream.follow(source.after)  # `evict`'s event: compute followed the copy into the source
        stream.follow(target.after)  # a copy to the device may still be reading the target
        try:
            parts = chunks(0, self._extent(key, source))
            for _ in _throttled(stream, source, target, parts):
                yield None
        finally:
            source.after = target.after = stream.record()


def _throttled(
    stream: Stream, source: Buffer, target: Buffer, parts: Iterator[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Submit a copy of each part, and wait for the oldest as soon as too many are in flight.

    Otherwise all of a record would be in the stream at once, and a demand would wait for all of a
    guess.
    """
    in_flight: deque[Event] = deque()
    for first, last in parts:
        stream.copy(source.memory[first:last], target.memory[first:last])
        in_flight.append(stream.record())
        if len(in_flight) > _IN_FLIGHT:
            in_flight.popleft().wait()
        yield first, last


def _span(begun: Event, ended: Event) -> tuple[int, int]:
    """Return start and duration in nanoseconds."""
    ended.wait()  # spans are read when the device is past their end, or nearly so
    start = begun.nanoseconds()
    return start, ended.nanoseconds() - start
