"""Memory for one record each, on a device or beside it. Knows bytes and views; nothing of experts.

Every buffer is as large as the largest record and a page more, so that any record fits any buffer
and may begin inside the first page, as it does in its file.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from mixoff.quantization import PackedMatrix
from mixoff.tiers.aligned import PAGE, align, aligned_buffer
from mixoff.tiers.queue import Ticket
from mixoff.tiers.record import RecordLayout
from mixoff.tiers.streams import Event

Expert = Mapping[str, PackedMatrix]

CHUNK = 8 << 20  # bytes moved in one step: a demand waits for no more of a guess
_MAX_VIEWS = 16  # layouts and starts that a buffer remembers its tensors for


class Buffer:
    """Memory for one record.

    Parameters
    ----------
    memory
        Bytes, uint8, that begin on a page.
    """

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.start = 0  # where in the memory the record begins, less than a page
        self.after: Event | None = None  # what has to end before the bytes are touched again
        self._views: dict[tuple[int, int], tuple[RecordLayout, Expert]] = {}

    @classmethod
    def for_records(cls, nbytes: int, device: torch.device | str = "cpu") -> "Buffer":
        """Return a buffer that takes any record of so many bytes or fewer."""
        return cls(aligned_buffer(align(nbytes, PAGE) + PAGE, device))

    def expert(self, layout: RecordLayout) -> Expert:
        """Return the tensors of the record in it, as views."""
        key = (id(layout), self.start)
        if key not in self._views:
            if len(self._views) == _MAX_VIEWS:
                self._views.clear()
            self._views[key] = layout, layout.tensors(self.memory[self.start :])
        return self._views[key][1]


def chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a range of bytes into pieces of `CHUNK` bytes, the last one shorter."""
    for first in range(start, end, CHUNK):
        yield first, min(first + CHUNK, end)


class Pool:
    """Buffers that are in nobody's use, or will be out of use when a transfer has ended.

    Parameters
    ----------
    allocate
        Makes a buffer.
    limit
        How many buffers there may be in all, those in use included.
    """

    def __init__(self, allocate: Callable[[], Buffer], limit: int) -> None:
        self._allocate = allocate
        self._free: list[Buffer] = []
        self._returning: list[tuple[Ticket, Buffer]] = []
        self._made = 0
        self.limit = limit

    def take(self) -> Buffer | None:
        """Return a buffer that may be filled now, or None if there is none."""
        self._collect()
        if self._free:
            return self._free.pop()
        if self._made >= self.limit:
            return None
        self._made += 1
        return self._allocate()

    def give(self, buffer: Buffer, *, after: Ticket | None = None) -> None:
        """Take a buffer back, now or when a transfer that touches it has ended."""
        if after is not None and not after.ended:
            self._returning.append((after, buffer))
        else:
            self._free.append(buffer)
        self.trim()

    def wait(self) -> bool:
        """Wait until a buffer is back; False if none is to come back."""
        if not self._returning:
            return False
        self._returning[0][0].settle()
        self._collect()
        return True

    def trim(self) -> None:
        """Give up free buffers beyond the limit."""
        while self._free and self._made > self.limit:
            self._free.pop()
            self._made -= 1

    def _collect(self) -> None:
        waiting = []
        for ticket, buffer in self._returning:
            if ticket.ended:
                self._free.append(buffer)
            else:
                waiting.append((ticket, buffer))
        self._returning = waiting
        self.trim()
