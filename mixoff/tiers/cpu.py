"""Moves records where the device computes in host memory: from disk straight into its buffers."""

from collections.abc import Iterator
from typing import Any, NoReturn

from mixoff.tiers.buffers import Buffer
from mixoff.tiers.mover import Fetch
from mixoff.tiers.queue import Ticket, Transfers
from mixoff.tiers.record import Key
from mixoff.tiers.store import RecordStore


class CpuMover:
    """A device that computes in host memory: records are read from disk straight into its buffers.

    Host memory beyond the slots keeps the records that left a slot last. They come back without a
    copy, since their buffer becomes the slot.

    Parameters
    ----------
    store
        Reads records.
    transfers
        Does the reading.
    nbytes
        Bytes of the largest record.
    kept
        How many records may stay in host memory beyond the slots.
    """

    def __init__(
        self, store: RecordStore, transfers: Transfers, *, nbytes: int, kept: int = 0
    ) -> None:
        self.transfers = transfers
        self.extra_buffers = kept
        self._store = store
        self._nbytes = nbytes
        self._kept: dict[Key, Buffer] = {}  # the one that left a slot first comes first

    @property
    def busy_cores(self) -> int:
        """One while records are read through the page cache, which copies them.

        Direct reads leave the processor alone, and `benchmarks/threads.py` shows that it doesn't
        pay to spare a thread for them, nor for what the page cache doesn't hold yet.
        """
        return int(self.transfers.under_way and self._store.reader.io != "direct")

    def allocate(self) -> Buffer:
        """Return a new buffer."""
        return Buffer.for_records(self._nbytes)

    def nbytes(self, key: Key) -> int:
        """Return the bytes of a record."""
        return self._store.nbytes(*key)

    def holds(self, key: Key) -> bool:
        """Return whether host memory kept the record."""
        return key in self._kept

    def take_kept(self, key: Key) -> Buffer | None:
        """Return the buffer of a record that host memory kept."""
        return self._kept.pop(key, None)

    def fetch(self, fetch: Fetch) -> Iterator[object]:
        """Read a record from disk."""
        nbytes = self._store.nbytes(*fetch.key)
        for _, last in self._store.read(*fetch.key, fetch.buffer):
            fetch.nbytes = min(last - fetch.buffer.start, nbytes)
            if fetch.nbytes < nbytes:
                yield None

    def before_use(self, buffer: Buffer) -> None:
        """Do nothing: what was read is there."""

    def in_host_memory(self, key: Key) -> bool:
        """Return False: there is no host memory beside this device."""
        return False

    def borrow(self, key: Key) -> NoReturn:
        """Lend nothing, since `in_host_memory` is False."""
        raise AssertionError(f"{key}: nothing is beside a device that is host memory")

    def give_back(self, buffer: Buffer) -> None:
        """Do nothing."""

    def wait_until_in_host_memory(self, key: Key, buffer: Buffer) -> None:
        """Do nothing."""

    def slot_filled(self, key: Key) -> None:
        """Do nothing: the record is in one place only."""

    def evict(self, key: Key, buffer: Buffer) -> tuple[Buffer | None, Ticket | None]:
        """Keep the record if that is allowed, and return the buffer of the one it displaces."""
        if key in self._kept:  # it was on the device twice: two demands were open that needed it
            return buffer, None
        self._kept[key] = buffer
        if len(self._kept) <= self.extra_buffers:
            return None, None
        return self._kept.pop(next(iter(self._kept))), None

    def facts(self) -> dict[str, Any]:
        """Return how the disk is read."""
        return self._store.facts()

    def close(self) -> None:
        """Drop what is kept, and close the files."""
        self._kept.clear()
        self._store.close()
