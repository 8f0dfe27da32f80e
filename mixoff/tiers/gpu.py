"""Copies between host memory and a device with memory of its own. Knows streams; no experts.

What must not overlap is kept apart by events, without the host: a copy into a buffer follows the
compute and the copies that used it before, and compute follows the copy. The host itself waits for
an event only before it lets the disk write over host memory that a copy may still be reading.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from mixoff.tiers.aligned import PAGE, align
from mixoff.tiers.buffers import Buffer, chunks
from mixoff.tiers.host import HostStore, PinnedMemory
from mixoff.tiers.mover import Fetch
from mixoff.tiers.queue import Ticket, Transfers
from mixoff.tiers.record import Key
from mixoff.tiers.store import RecordStore
from mixoff.tiers.streams import Device, Event, Stream
from mixoff.trace.events import Span

_IN_FLIGHT = 2  # chunks on their way at once: the next is asked for while one is copied


class GpuMover:
    """A device with memory of its own, filled from host memory and from disk through host memory.

    Parameters
    ----------
    store
        Reads records from disk.
    transfers
        Does the work.
    device
        Streams and memory.
    nbytes
        Bytes of the largest record.
    host_buffers
        How many records host memory may hold.
    inclusive
        Whether host memory keeps what it sends, so that leaving the device means to forget. Else
        it is exclusive: a record that leaves the device takes the place that its successor left.
    pinned
        Gives host memory.
    """

    extra_buffers = 0
    busy_cores = 0  # the device copies

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
        self._outgoing = Transfers()  # the link's other direction
        self.host = HostStore(host_buffers, lambda: pinned.allocate(nbytes))
        self._store = store
        self._device = device
        self._nbytes = nbytes
        self._inclusive = inclusive
        self._pinned = pinned
        # Each thread, and who waits, has one fetch in hand and perhaps one that was overtaken.
        self._bounce = HostStore(2 * (transfers.max_threads + 1), lambda: pinned.allocate(nbytes))
        self._leaving: dict[Key, Ticket] = {}  # records on their way back to host memory

    def allocate(self) -> Buffer:
        """Return a new buffer of the device."""
        with torch.inference_mode(False):  # transfers write into it from outside such a mode
            return Buffer(self._device.allocate(align(self._nbytes, PAGE) + PAGE))

    def nbytes(self, key: Key) -> int:
        """Return the bytes of a record."""
        return self._store.nbytes(*key)

    def holds(self, key: Key) -> bool:
        """Return False: what the device holds is in slots and staging only."""
        return False

    def take_kept(self, key: Key) -> Buffer | None:
        """Return None, since `holds` is False."""
        return None

    def fetch(self, fetch: Fetch) -> Iterator[object]:
        """Copy a record into a buffer of the device, from host memory if it is there."""
        if (kept := self.host.borrow(fetch.key)) is not None:
            fetch.tier = "host"
            try:
                if (ticket := self._leaving.get(fetch.key)) is not None:
                    ticket.wait()
                yield from self._copy(fetch, kept, chunks(0, self._extent(fetch.key, kept)))
            finally:
                self.host.give_back(kept)
            return
        host = self.host.reserve() if self._inclusive else None
        place, owner = (host, self.host) if host is not None else self._bounce_buffer()
        kept_now = False
        try:
            if place.after is not None:
                place.after.wait()
            yield from self._copy(fetch, place, self._store.read(*fetch.key, place))
            if host is not None:
                self.host.keep(fetch.key, place)
                kept_now = True
        finally:
            if not kept_now:
                owner.release(place)

    def before_use(self, buffer: Buffer) -> Span:
        """Let compute follow the copy, and return how long it then waits."""
        compute = self._device.compute
        begun = compute.record()
        compute.follow(buffer.after)
        ended = compute.record()
        return lambda: _span(begun, ended)

    def in_host_memory(self, key: Key) -> bool:
        """Return whether host memory holds the record."""
        return key in self.host

    def borrow(self, key: Key) -> Buffer:
        """Return the buffer of host memory that holds a record; it stays until `give_back`."""
        buffer = self.host.borrow(key)
        assert buffer is not None, "who borrows has asked whether it is there"
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        """End what `borrow` began."""
        self.host.give_back(buffer)

    def wait_until_in_host_memory(self, key: Key, buffer: Buffer) -> None:
        """Wait until a record that left the device is in host memory whole."""
        if (ticket := self._leaving.get(key)) is not None:
            ticket.wait()
            if buffer.after is not None:
                buffer.after.wait()

    def slot_filled(self, key: Key) -> None:
        """Free the place in host memory of a record that lies on the device now."""
        self._leaving.pop(key, None)
        if not self._inclusive:
            self.host.forget(key)

    def evict(self, key: Key, buffer: Buffer) -> tuple[Buffer | None, Ticket | None]:
        """Forget a resident, or with an exclusive host tier send it back there."""
        buffer.after = self._device.compute.record()  # whatever comes next follows compute
        if self._inclusive or key in self.host or (place := self._place()) is None:
            return buffer, None
        place.start = buffer.start
        self.host.keep(key, place)
        ticket = self._outgoing.submit(self._send_back(key, buffer, place))
        self._leaving[key] = ticket
        return buffer, ticket

    def facts(self) -> dict[str, Any]:
        """Return how the disk is read, and why part of the host memory isn't pinned."""
        return self._store.facts() | {"pinned_notice": self._pinned.notice}

    def close(self) -> None:
        """Wait for the copies under way, give up host memory and close the files."""
        self._outgoing.close()
        for stream in (self._device.inward, self._device.outward, self._device.compute):
            stream.record().wait()
        self.host.clear()
        self._bounce.clear()
        self._store.close()

    def _extent(self, key: Key, buffer: Buffer) -> int:
        return align(buffer.start + self._store.nbytes(*key), PAGE)

    def _bounce_buffer(self) -> tuple[Buffer, HostStore]:
        buffer = self._bounce.reserve()
        assert buffer is not None, "more fetches have begun than threads can have"
        return buffer, self._bounce

    def _place(self) -> Buffer | None:
        """Return a place for a victim: a spare one, or that of the record which was kept first."""
        if (spare := self.host.reserve()) is not None:
            return spare
        if (displaced := self.host.displace()) is None:
            return None
        key, place = displaced
        if (ticket := self._leaving.pop(key, None)) is not None:
            ticket.settle()
        return place

    def _copy(
        self, fetch: Fetch, source: Buffer, parts: Iterator[tuple[int, int]]
    ) -> Iterator[object]:
        """Copy parts of a buffer of host memory to the device as they become ready."""
        stream, target = self._device.inward, fetch.buffer
        nbytes = self._store.nbytes(*fetch.key)
        stream.follow(target.after)
        stream.follow(source.after)
        begun = stream.record()
        try:
            for _, last in _throttled(stream, source, target, parts):
                target.start = source.start
                fetch.nbytes = min(last - source.start, nbytes)
                if fetch.nbytes < nbytes:
                    yield None
        finally:
            ended = source.after = target.after = stream.record()
            fetch.span = lambda: _span(begun, ended)

    def _send_back(self, key: Key, source: Buffer, target: Buffer) -> Iterator[object]:
        stream = self._device.outward
        stream.follow(source.after)
        stream.follow(target.after)
        try:
            parts = chunks(0, self._extent(key, source))
            for _ in _throttled(stream, source, target, parts):
                yield None
        finally:
            source.after = target.after = stream.record()


def _throttled(
    stream: Stream, source: Buffer, target: Buffer, parts: Iterator[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Ask for copies of the parts, and wait as soon as too many of them are under way."""
    under_way: deque[Event] = deque()
    for first, last in parts:
        stream.copy(source.memory[first:last], target.memory[first:last])
        under_way.append(stream.record())
        if len(under_way) > _IN_FLIGHT:
            under_way.popleft().wait()
        yield first, last


def _span(begun: Event, ended: Event) -> tuple[int, int]:
    ended.wait()  # when a recording has ended; by then the device is past it, or nearly so
    start = begun.nanoseconds()
    return start, ended.nanoseconds() - start
