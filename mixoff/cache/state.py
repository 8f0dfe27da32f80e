"""What a cache holds now, in one object: slots, residency, buffers, copies in flight.

Knows which buffer holds which expert; knows nothing of the order in which a demand is served.
"""

import weakref
from collections.abc import Sequence

from mixoff.cache.demand import ActiveDemand
from mixoff.cache.observers import Observers
from mixoff.cache.staging import InFlight, Staging, fetch_into
from mixoff.errors import MixoffError
from mixoff.policies.residency import Residency
from mixoff.tiers.buffers import Buffer, Pool
from mixoff.tiers.mover import Fetch, HostSide, KeepsEvicted, Mover
from mixoff.tiers.record import Key


class CacheState:
    """All state of a cache that must agree, and the steps that change several parts of it.

    Slots are the truth: all else here can be made to agree with them again. Between two calls of
    the cache's methods, and whenever a demand has yielded an expert, these invariants hold:

    1. A layer's residents are the experts in its slots, unless the active demand is the layer's.
       Then residency is already what the demand decided; slots follow as its misses arrive.
    2. A layer has no more slots filled than it may have residents.
    3. Each buffer that the pool has made is in one place: in a slot, in flight to the active
       demand, in a guess, in `passing`, with a record that the mover keeps, or in the pool, free or
       returning. A demand that another one interrupted has none in flight: it fetches one miss at a
       time from then on, and yields it next.
    4. A host buffer is borrowed for each expert in the active demand's `borrowed`, and for each
       that was yielded from host memory and is being computed.
    5. A queued or running transfer to the device is in flight to the active demand or a guess, or
       it was cancelled and its buffer is returning.

    Parameters
    ----------
    mover
        Moves records between the device and what is below it.
    residency
        Each layer's; it decides, and the slots follow.
    staging
        How many buffers belong to no layer.
    observers
        Are notified of copies, guesses, and demands that have ended.
    """

    def __init__(
        self, mover: Mover, residency: Sequence[Residency], staging: int, observers: Observers
    ) -> None:
        self.mover = mover
        self.keeper = mover if isinstance(mover, KeepsEvicted) else None
        self.host_side = mover if isinstance(mover, HostSide) else None
        self.observers = observers
        self.residency = residency
        self.slots: list[dict[int, Buffer]] = [{} for _ in residency]
        self.active: ActiveDemand | None = None  # the demand whose misses may fill slots
        self.passing: list[Buffer] = []  # of experts that were handed out and have no slot
        self.num_staging = staging
        self.pool = Pool(mover.allocate, self._num_buffers(residency[0].num_slots))
        self.staging = Staging(mover, self.pool, observers)
        self.is_closed = False
        # The finalizer holds the mover alone. If the mover, or a transfer in its queue, referred to
        # this object, it would never be collected, and the finalizer would never run.
        self._close_mover = weakref.finalize(self, _close_mover, mover)

    def check_open(self) -> None:
        """Raise MixoffError if the cache was closed."""
        if self.is_closed:
            raise MixoffError("this expert cache was closed: build the model again.")

    def is_on_device(self, key: Key) -> bool:
        """Return whether a record is on the device, in a slot or not, or in flight to it."""
        layer, expert = key
        active = self.active
        if active is not None and active.layer == layer and expert in active.in_flight:
            return True
        is_kept = self.keeper is not None and self.keeper.holds(key)
        return expert in self.slots[layer] or key in self.staging or is_kept

    def fetch(self, key: Key) -> InFlight | None:
        """Begin to fetch a record, or take a kept one's buffer; None if no buffer is free yet.

        Guesses give their buffers up for it.
        """
        if self.keeper is not None and (buffer := self.keeper.take_kept(key)) is not None:
            return InFlight(Fetch(key, buffer, tier="host"), None)
        while (buffer := self.pool.take()) is None:
            if not self.staging.release_one():
                return None
        return fetch_into(buffer, key, self.mover, self.observers)

    def fill_slot(self, key: Key, buffer: Buffer) -> None:
        """Put a record that has arrived into a slot of its layer."""
        layer, expert = key
        self.slots[layer][expert] = buffer
        self.mover.slot_filled(key)

    def evict(self, layer: int, victim: int) -> None:
        """Take a resident's slot from it."""
        self.drop((layer, victim), self.slots[layer].pop(victim))

    def drop(self, key: Key, buffer: Buffer) -> None:
        """Remove a record from the device; a buffer, this one or another, returns to the pool."""
        if self.is_closed:
            return
        free, ticket = self.mover.evict(key, buffer)
        if free is not None:
            self.pool.give(free, after=ticket)

    def cancel(self, in_flight: InFlight) -> None:
        """Drop a record that a demand doesn't wait for any longer."""
        fetch, ticket = in_flight.fetch, in_flight.ticket
        if ticket is None:  # a kept record: it is kept again
            self.drop(fetch.key, fetch.buffer)
            return
        ticket.cancel()
        # A cancelled transfer may still be inside a step that writes into the buffer. Free at
        # once, it could be filled with another record, whose bytes that step would overwrite.
        self.pool.give(fetch.buffer, after=ticket)

    def end(self, demand: ActiveDemand) -> None:
        """End a demand, complete or not: the layer's residents are those with a slot."""
        self._release(demand)
        if demand.has_ended:
            return
        demand.has_ended = True
        is_complete = not demand.unserved
        if self.active is demand:
            self.active = None
        if not is_complete:
            self.residency[demand.layer].residents = self.slots[demand.layer]
        if self.observers.attached:
            self._notify_end(demand, is_complete=is_complete)

    def _release(self, demand: ActiveDemand) -> None:
        """Drop what is in flight to a demand, and give back what it has borrowed."""
        for in_flight in demand.in_flight.values():
            self.cancel(in_flight)
        demand.in_flight.clear()
        if self.host_side is None:
            return
        for expert, buffer in demand.borrowed.items():
            self.host_side.give_back(buffer)
            del demand.computed[expert]
        demand.borrowed.clear()

    def _notify_end(self, demand: ActiveDemand, *, is_complete: bool) -> None:
        self.observers.notify_demand(demand.event(), demand.observers)
        if not is_complete:
            layer = demand.layer
            self.observers.notify_snapshot(layer, self.residency[layer], "interrupted")

    def resize(self, slots_per_layer: int) -> None:
        """Change how many residents a layer may have, and free the buffers that are too many."""
        if self.active is not None:
            self.end(self.active)
        self.pool.limit = self._num_buffers(slots_per_layer)
        for layer, residency in enumerate(self.residency):
            for victim in residency.resize(slots_per_layer):
                self.evict(layer, victim)
            self.observers.notify_snapshot(layer, residency, "resize")
        self.pool.trim()

    def close(self) -> None:
        """Release slots, host memory, files and threads; closing again does nothing."""
        if self.active is not None:
            self.end(self.active)
        self.is_closed = True
        self.staging.drop_all()
        self._close_mover()  # waits for all copies; only then the memory that they use is freed
        for slots in self.slots:
            slots.clear()
        self.pool.close()

    def _num_buffers(self, slots_per_layer: int) -> int:
        """Return how many buffers may exist in all."""
        slots = slots_per_layer * len(self.residency)
        return slots + self.num_staging + self.mover.extra_buffers


def _close_mover(mover: Mover) -> None:
    mover.transfers.close()
    mover.close()
