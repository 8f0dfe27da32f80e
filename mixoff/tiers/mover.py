"""How records reach a device's buffers, and what becomes of those that leave them.

`CpuMover` is for a device that computes in host memory; `mixoff.tiers.gpu` has the one for a
device with memory of its own. Both know tiers, buffers and copies, and neither who is resident, or
why.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from mixoff.tiers.buffers import Buffer
from mixoff.tiers.queue import Ticket, Transfers
from mixoff.tiers.record import Key
from mixoff.trace.events import Span, Tier


@dataclass
class Fetch:
    """A record on its way into a buffer, and what is known of the way."""

    key: Key
    buffer: Buffer
    tier: Tier = "disk"  # where it was found, once the fetch has begun
    nbytes: int = 0  # moved so far
    span: Span | None = None  # the copy as the device saw it


class Mover(Protocol):
    """Moves records into buffers of the device and out of them."""

    transfers: Transfers
    extra_buffers: int  # of the device, besides slots and staging, that records may rest in

    @property
    def busy_cores(self) -> int:
        """How many cores move bytes now, that could compute."""

    def allocate(self) -> Buffer:
        """Return a new buffer of the device."""

    def nbytes(self, key: Key) -> int:
        """Return the bytes of a record."""

    def holds(self, key: Key) -> bool:
        """Return whether a buffer of the device, no slot, holds the record."""

    def take_kept(self, key: Key) -> Buffer | None:
        """Return that buffer, if there is one; it is the caller's now."""

    def fetch(self, fetch: Fetch) -> Iterator[object]:
        """Fill a buffer, a chunk a step; any thread may do the steps."""

    def before_use(self, buffer: Buffer) -> Span | None:
        """Let compute begin only when the buffer is filled; return its wait if only it can tell."""

    def in_host_memory(self, key: Key) -> bool:
        """Return whether host memory beside the device holds the record, for a CPU to compute."""

    def borrow(self, key: Key) -> Buffer:
        """Return the buffer beside the device that holds a record; it stays until `give_back`."""

    def give_back(self, buffer: Buffer) -> None:
        """End what `borrow` began."""

    def wait_until_in_host_memory(self, key: Key, buffer: Buffer) -> None:
        """Wait until a borrowed buffer is filled: here the host has to."""

    def slot_filled(self, key: Key) -> None:
        """Note that the record has a slot now."""

    def evict(self, key: Key, buffer: Buffer) -> tuple[Buffer | None, Ticket | None]:
        """Let a record go: return a buffer, if any, that is free now or once the ticket ended."""

    def facts(self) -> dict[str, Any]:
        """Return how bytes move, as plain values for a recording: what was asked and what came."""

    def close(self) -> None:
        """Give back all that is held."""
