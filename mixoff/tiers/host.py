"""Host memory apart from a device's, pinned where possible, lent to transfers. Knows no streams."""

import logging
from collections import Counter
from collections.abc import Callable
from threading import RLock

import torch

from mixoff.tiers.aligned import PAGE, align
from mixoff.tiers.buffers import Buffer
from mixoff.tiers.record import Key
from mixoff.tiers.streams import Device

_log = logging.getLogger(__name__)


class PinnedMemory:
    """Buffers of pinned host memory while the budget and the system allow, then of pageable memory.

    Parameters
    ----------
    device
        Pins memory.
    budget
        Bytes that may be pinned.
    """

    def __init__(self, device: Device, budget: int) -> None:
        self._device = device
        self._budget_left = budget
        self.notice: str | None = None  # why part of it isn't pinned

    def allocate(self, nbytes: int) -> Buffer:
        """Return a buffer for records of up to `nbytes` bytes."""
        size = align(nbytes, PAGE) + PAGE
        if size <= self._budget_left:
            try:
                with torch.inference_mode(False):  # transfer threads write into it outside the mode
                    memory = self._device.allocate_pinned(size + PAGE)
                    self._budget_left -= size
                    start = -memory.data_ptr() % PAGE
                    return Buffer(memory[start : start + size])
            except RuntimeError as error:  # WSL and Colab refuse to pin much
                self._stop(f"the system refuses to pin more ({str(error).splitlines()[0]})")
        else:
            self._stop("the budget for pinned memory is spent")
        return Buffer.for_records(nbytes)

    def _stop(self, reason: str) -> None:
        """Pin no more, and give the reason once."""
        self._budget_left = 0
        if self.notice is None:
            self.notice = (
                f"Part of the host memory is pageable, so its copies are slower: {reason}."
            )
            _log.warning(self.notice)


class HostStore:
    """Records in host memory apart from the device's, as many as there are buffers.

    A buffer is spare, reserved (a transfer fills it), holds a record, or is forgotten: it held one
    that was forgotten while the buffer was lent, and becomes spare when the last loan ends.

    Parameters
    ----------
    capacity
        How many buffers may exist.
    allocate
        Makes a buffer.
    """

    def __init__(self, capacity: int, allocate: Callable[[], Buffer]) -> None:
        self._capacity = capacity
        self._allocate = allocate
        # Fetches run in any thread. Reentrant, since garbage collection inside a method may close
        # a collected cache's mover, which clears its stores.
        self._lock = RLock()
        self._made: list[Buffer] = []  # every buffer that exists, in whichever of the four states
        self._kept: dict[Key, Buffer] = {}  # records, in the order in which they were kept
        self._lent: Counter[int] = Counter()  # loans of each buffer, by its id
        self._forgotten: dict[int, Buffer] = {}  # by id
        self._spare: list[Buffer] = []

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def borrow(self, key: Key) -> Buffer | None:
        """Return the buffer that holds a record, or None; it isn't reused until `give_back`."""
        with self._lock:
            buffer = self._kept.get(key)
            if buffer is not None:
                self._lent[id(buffer)] += 1
            return buffer

    def give_back(self, buffer: Buffer) -> None:
        """End a loan that `borrow` began."""
        with self._lock:
            self._lent[id(buffer)] -= 1
            if not self._lent[id(buffer)]:
                del self._lent[id(buffer)]
                if (spare := self._forgotten.pop(id(buffer), None)) is not None:
                    self._spare.append(spare)

    def reserve(self) -> Buffer | None:
        """Return a buffer to fill, or None if all are in use."""
        with self._lock:
            if self._spare:
                return self._spare.pop()
            if len(self._made) < self._capacity:
                buffer = self._allocate()
                self._made.append(buffer)
                return buffer
            return None

    def keep(self, key: Key, buffer: Buffer) -> None:
        """Note that a reserved buffer holds a record, or will when the copy into it has ended."""
        with self._lock:
            self._kept[key] = buffer

    def release(self, buffer: Buffer) -> None:
        """Make a reserved buffer spare, in which no record was kept."""
        with self._lock:
            self._spare.append(buffer)

    def forget(self, key: Key) -> None:
        """Make the buffer of a record spare, if it has one: at once, or when its loans end."""
        with self._lock:
            buffer = self._kept.pop(key, None)
            if buffer is not None and id(buffer) in self._lent:
                self._forgotten[id(buffer)] = buffer
            elif buffer is not None:
                self._spare.append(buffer)

    def displace(self) -> tuple[Key, Buffer] | None:
        """Drop the oldest record that isn't lent, and return it with its buffer, now reserved."""
        with self._lock:
            key = next((key for key, b in self._kept.items() if id(b) not in self._lent), None)
            return None if key is None else (key, self._kept.pop(key))

    def clear(self) -> None:
        """Release all buffers."""
        with self._lock:
            self._kept.clear()
            self._forgotten.clear()
            self._spare.clear()
            self._made.clear()
