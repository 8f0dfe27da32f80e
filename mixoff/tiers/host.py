"""Host memory beside a device, pinned where it can be, lent to transfers. Knows no streams."""

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
    """Buffers of pinned host memory as long as the budget and the system allow, else of pageable.

    Parameters
    ----------
    device
        Pins memory.
    budget
        Bytes that may be pinned.
    """

    def __init__(self, device: Device, budget: int) -> None:
        self._device = device
        self._left = budget
        self.notice: str | None = None  # why not all of it is pinned

    def allocate(self, nbytes: int) -> Buffer:
        """Return a buffer for records of up to so many bytes."""
        whole = align(nbytes, PAGE) + PAGE
        if whole <= self._left:
            try:
                with torch.inference_mode(False):  # other threads write into it
                    memory = self._device.allocate_pinned(whole + PAGE)
                    self._left -= whole
                    start = -memory.data_ptr() % PAGE
                    return Buffer(memory[start : start + whole])
            except RuntimeError as error:  # WSL and Colab refuse large pins
                self._tell(f"the system refuses to pin more ({str(error).splitlines()[0]})")
        else:
            self._tell("the budget for pinned memory is spent")
        return Buffer.for_records(nbytes)

    def _tell(self, why: str) -> None:
        self._left = 0
        if self.notice is None:
            self.notice = f"Part of the host memory is pageable, so its copies are slower: {why}."
            _log.warning(self.notice)


class HostStore:
    """Records in host memory beside a device, as many as there are buffers for.

    Parameters
    ----------
    capacity
        How many buffers.
    allocate
        Makes one.
    """

    def __init__(self, capacity: int, allocate: Callable[[], Buffer]) -> None:
        self._capacity = capacity
        self._allocate = allocate
        self._lock = RLock()  # fetches run in any thread, and garbage collection inside them
        self._kept: dict[Key, Buffer] = {}  # the one that was kept first comes first
        self._lent: Counter[int] = Counter()  # ids of buffers, how often each is lent
        self._forgotten: dict[int, Buffer] = {}  # spare as soon as they are given back
        self._spare: list[Buffer] = []
        self._made = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def borrow(self, key: Key) -> Buffer | None:
        """Return the buffer that holds a record, None if none does; it stays until `give_back`."""
        with self._lock:
            buffer = self._kept.get(key)
            if buffer is not None:
                self._lent[id(buffer)] += 1
            return buffer

    def give_back(self, buffer: Buffer) -> None:
        """End what `borrow` began."""
        with self._lock:
            self._lent[id(buffer)] -= 1
            if not self._lent[id(buffer)]:
                del self._lent[id(buffer)]
                if (spare := self._forgotten.pop(id(buffer), None)) is not None:
                    self._spare.append(spare)

    def reserve(self) -> Buffer | None:
        """Return a buffer to fill, None if all hold records."""
        with self._lock:
            if self._spare:
                return self._spare.pop()
            if self._made < self._capacity:
                self._made += 1
                return self._allocate()
            return None

    def keep(self, key: Key, buffer: Buffer) -> None:
        """Note that a reserved buffer holds a record, or will when what fills it has ended."""
        with self._lock:
            self._kept[key] = buffer

    def release(self, buffer: Buffer) -> None:
        """Take a reserved buffer back that nothing was kept in."""
        with self._lock:
            self._spare.append(buffer)

    def forget(self, key: Key) -> None:
        """Make the buffer of a record spare, if there is one, when nobody has borrowed it."""
        with self._lock:
            buffer = self._kept.pop(key, None)
            if buffer is not None and id(buffer) in self._lent:
                self._forgotten[id(buffer)] = buffer
            elif buffer is not None:
                self._spare.append(buffer)

    def displace(self) -> tuple[Key, Buffer] | None:
        """Give up the record that was kept first, and return it with its buffer, now reserved."""
        with self._lock:
            key = next((key for key, b in self._kept.items() if id(b) not in self._lent), None)
            return None if key is None else (key, self._kept.pop(key))

    def clear(self) -> None:
        """Give up all buffers."""
        with self._lock:
            self._kept.clear()
            self._forgotten.clear()
            self._spare.clear()
