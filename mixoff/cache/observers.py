"""The observers of a cache, and how they are notified. Knows events; decides nothing."""

from copy import deepcopy

from mixoff.policies.residency import Residency
from mixoff.trace.events import Copy, Demand, Guess, Observer, Reason, Snapshot


class Observers:
    """The observers that are attached to a cache, which every part of it notifies.

    A part checks `attached` before it makes an event, so that without observers one ``if`` is all
    that recording costs.
    """

    def __init__(self) -> None:
        # A tuple, replaced as a whole: transfer threads read it while others attach and detach.
        self.attached: tuple[Observer, ...] = ()

    def attach(self, observer: Observer) -> None:
        """Notify an observer from now on."""
        self.attached = (*self.attached, observer)

    def detach(self, observer: Observer) -> None:
        """Notify an observer no longer."""
        self.attached = tuple(o for o in self.attached if o is not observer)

    def notify_demand(self, demand: Demand, since: tuple[Observer, ...]) -> None:
        """Notify of a demand that has ended: those attached since it began."""
        for observer in since:
            if observer in self.attached:
                observer.demand(demand)

    def notify_copy(self, copy: Copy) -> None:
        """Notify of a copy that has ended."""
        for observer in self.attached:
            observer.copy(copy)

    def notify_guess(self, guess: Guess) -> None:
        """Notify of what became of a guess."""
        for observer in self.attached:
            observer.guess(guess)

    def notify_snapshot(self, layer: int, residency: Residency, reason: Reason) -> None:
        """Notify of a layer's state."""
        for observer in self.attached:
            observer.snapshot(snapshot_of(layer, residency, reason))


def snapshot_of(layer: int, residency: Residency, reason: Reason) -> Snapshot:
    """Return a layer's state now, which later demands don't change."""
    usage = deepcopy(residency.usage)
    return Snapshot(layer, reason, residency.num_slots, residency.residents, usage)
