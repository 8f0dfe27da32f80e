"""What a cache needs of a device: protocols for moving records into its buffers and out of them.

`mixoff.tiers.cpu.CpuMover` is for a device that computes in host memory,
`mixoff.tiers.gpu.GpuMover` for one with memory of its own. Both know tiers, buffers and copies, and
neither knows which expert is resident, or why.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mixoff.tiers.buffers import Buffer
from mixoff.tiers.queue import Ticket, Transfers
from mixoff.tiers.record import Key
from mixoff.trace.events import Span, Tier


@dataclass
class Fetch:
    """A record that is copied into a buffer, and what is known of the copy."""

    key: Key
    buffer: Buffer
    tier: Tier = "disk"  # where the record lay; right once the fetch has begun
    nbytes: int = 0  # moved so far
    span: Span | None = None  # the copy as the device measured it


class Mover(Protocol):
    """Moves records into buffers of the device and out of them."""

    transfers: Transfers
    extra_buffers: int  # of the device, besides slots and staging, that records may rest in

    @property
    def reserved_threads(self) -> int:
        """How many of the CPU's threads kernels should leave to transfers now."""

    def allocate(self) -> Buffer:
        """Return a new buffer of the device."""

    def nbytes(self, key: Key) -> int:
        """Return the bytes of a record."""

    def fetch(self, fetch: Fetch) -> Iterator[object]:
        """Fill a buffer, one chunk a step; any thread may do the steps."""

    def before_use(self, buffer: Buffer) -> Span | None:
        """Order compute after the copy into a buffer.

        Returns the wait if only the device can measure it. By default the copy has ended when the
        fetch has.
        """
        return None

    def slot_filled(self, key: Key) -> None:
        """Note that the record is in a slot now. By default no other copy of it exists."""
        return

    def evict(self, key: Key, buffer: Buffer) -> tuple[Buffer | None, Ticket | None]:
        """Remove a record from its buffer.

        Returns the buffer, if any, that is free now or once the ticket has ended.
        """

    def facts(self) -> dict[str, Any]:
        """Return how bytes move, as plain values for a recording: as requested and as it is."""

    def close(self) -> None:
        """Release memory and files."""


@runtime_checkable
class KeepsEvicted(Protocol):
    """A mover that keeps evicted records in buffers of the device, so that they move no bytes."""

    def holds(self, key: Key) -> bool:
        """Return whether an evicted record is kept."""

    def take_kept(self, key: Key) -> Buffer | None:
        """Return the buffer of a kept record, which is the caller's from now on, or None."""


@runtime_checkable
class HostSide(Protocol):
    """A mover with host memory apart from the device's, in which a CPU may compute experts."""

    def in_host_memory(self, key: Key) -> bool:
        """Return whether host memory holds the record."""

    def borrow(self, key: Key) -> Buffer:
        """Return the host buffer of a record that is in host memory; it stays until `give_back`."""

    def give_back(self, buffer: Buffer) -> None:
        """End what `borrow` began."""

    def wait_until_in_host_memory(self, key: Key, buffer: Buffer) -> None:
        """Wait until a borrowed buffer is filled, before the host reads it."""
