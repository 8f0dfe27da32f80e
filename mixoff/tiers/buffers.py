"""Memory for one record each, on a device or in host memory. Knows bytes and views; no experts.

Every buffer has the size of the largest record and one page more, so that any record fits any
buffer and may begin inside the first page, as it does in its file.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from mixoff.quantization import PackedMatrix
from mixoff.tiers.aligned import PAGE, align, aligned_buffer
from mixoff.tiers.queue import Ticket
from mixoff.tiers.record import RecordLayout
from mixoff.tiers.streams import Event
from mixoff.units import CHUNK

Expert = Mapping[str, PackedMatrix]

_MAX_VIEWS = 16  # pairs of layout and start for which a buffer keeps its tensors


class Buffer:
    """Memory for one record.

    Parameters
    ----------
    memory
        Bytes, uint8, that begin on a page boundary.
    """

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.start = 0  # where in the memory the record begins, less than a page
        self.after: Event | None = None  # end of the device's last work on it; the next follows it
        self._views: dict[tuple[int, int], tuple[RecordLayout, Expert]] = {}

    @classmethod
    def for_records(cls, nbytes: int, device: torch.device | str = "cpu") -> "Buffer":
        """Return a buffer for any record of up to `nbytes` bytes."""
        return cls(aligned_buffer(align(nbytes, PAGE) + PAGE, device))

    def expert(self, layout: RecordLayout) -> Expert:
        """Return the tensors of the record in the buffer, as views."""
        key = (id(layout), self.start)  # the value holds the layout, so that its id stays its own
        if key not in self._views:
            if len(self._views) == _MAX_VIEWS:
                self._views.clear()
            self._views[key] = layout, layout.tensors(self.memory[self.start :])
        return self._views[key][1]


def chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a range of bytes into chunks of `CHUNK` bytes, the last one shorter."""
    for first in range(start, end, CHUNK):
        yield first, min(first + CHUNK, end)


class Pool:
    """Buffers that are free, or will be when a transfer has ended.

    Parameters
    ----------
    allocate
        Makes a buffer.
    limit
        How many buffers may exist in all, those in use included.
    """

    def __init__(self, allocate: Callable[[], Buffer], limit: int) -> None:
        self._allocate = allocate
        # Every buffer that exists. Those not free and not returning are in use: were one lost
        # between its owners, this list would still have it.
        self._made: list[Buffer] = []
        self._free: list[Buffer] = []
        self._returning: list[tuple[Ticket, Buffer]] = []
        self.limit = limit

    def take(self) -> Buffer | None:
        """Return a buffer that may be filled now, or None if none is free."""
        self._collect()
        if self._free:
            return self._free.pop()
        if len(self._made) >= self.limit:
            return None
        buffer = self._allocate()
        self._made.append(buffer)
        return buffer

    def give(self, buffer: Buffer, *, after: Ticket | None = None) -> None:
        """Take a buffer back, now or when a transfer that touches it has ended.

        A cancelled transfer may still be inside a step that reads or writes the buffer, so the
        buffer isn't free before its ticket has ended.
        """
        if after is not None and not after.ended:
            self._returning.append((after, buffer))
        else:
            self._free.append(buffer)
        self.trim()

    def wait(self) -> bool:
        """Wait until the next buffer has returned; False if none is returning."""
        if not self._returning:
            return False
        self._returning[0][0].settle()
        self._collect()
        return True

    def trim(self) -> None:
        """Drop free buffers beyond the limit."""
        while self._free and len(self._made) > self.limit:
            self._made.remove(self._free.pop())

    def close(self) -> None:
        """Drop all buffers; no others are made."""
        self.limit = 0
        for buffers in (self._made, self._free, self._returning):
            buffers.clear()

    def _collect(self) -> None:
        returning = []
        for ticket, buffer in self._returning:
            if ticket.ended:
                self._free.append(buffer)
            else:
                returning.append((ticket, buffer))
        self._returning = returning
        self.trim()
