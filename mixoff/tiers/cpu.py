"""Moves records where the device computes in host memory: from disk straight into its buffers."""

from collections.abc import Iterator
from typing import Any

from mixoff.tiers.buffers import Buffer
from mixoff.tiers.mover import Fetch, Mover
from mixoff.tiers.queue import Ticket, Transfers
from mixoff.tiers.record import Key
from mixoff.tiers.store import RecordStore


class CpuMover(Mover):
    """A device that computes in host memory: records are read from disk straight into its buffers.

    Host memory beyond the slots keeps the records that were evicted last. A kept record that is
    demanded again moves no bytes, since its buffer becomes the slot.

    Parameters
    ----------
    store
        Reads records.
    transfers
        Runs the reads.
    nbytes
        Bytes of the largest record.
    kept
        How many evicted records may stay in host memory beyond the slots.
    """

    def __init__(
        self, store: RecordStore, transfers: Transfers, *, nbytes: int, kept: int = 0
    ) -> None:
        self.transfers = transfers
        self.extra_buffers = kept
        self._store = store
        self._nbytes = nbytes
        self._kept: dict[Key, Buffer] = {}  # in the order of eviction

    @property
    def reserved_threads(self) -> int:
        """One while records are read through the page cache, whose copy takes a core; else none.

        Direct reads need no core. `benchmarks/threads.py` shows that reserving a thread for them
        doesn't pay, nor for buffered reads of what the page cache doesn't hold yet.
        """
        return int(self.transfers.has_work and self._store.reader.io != "direct")

    def allocate(self) -> Buffer:
        """Return a new buffer."""
        return Buffer.for_records(self._nbytes)

    def nbytes(self, key: Key) -> int:
        """Return the bytes of a record."""
        return self._store.nbytes(*key)

    def holds(self, key: Key) -> bool:
        """Return whether an evicted record is kept."""
        return key in self._kept

    def take_kept(self, key: Key) -> Buffer | None:
        """Return the buffer of a kept record, which is the caller's from now on, or None."""
        return self._kept.pop(key, None)

    def fetch(self, fetch: Fetch) -> Iterator[object]:
        """Read a record from disk."""
        nbytes = self._store.nbytes(*fetch.key)
        for _, last in self._store.read(*fetch.key, fetch.buffer):
            fetch.nbytes = min(last - fetch.buffer.start, nbytes)
            if fetch.nbytes < nbytes:
                yield None

    def evict(self, key: Key, buffer: Buffer) -> tuple[Buffer | None, Ticket | None]:
        """Keep the record if that is allowed, and return the buffer of the one it displaces."""
        if key in self._kept:  # it was on the device twice: two open demands needed it
            return buffer, None
        self._kept[key] = buffer
        if len(self._kept) <= self.extra_buffers:
            return None, None
        return self._kept.pop(next(iter(self._kept))), None

    def facts(self) -> dict[str, Any]:
        """Return how the disk is read."""
        return self._store.facts()

    def close(self) -> None:
        """Drop kept records and close the files."""
        self._kept.clear()
        self._store.close()
