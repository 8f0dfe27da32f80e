"""The demand that is being served, and the stream of its experts. Knows experts; moves no bytes."""

from collections.abc import Generator, Iterator, Mapping
from time import perf_counter_ns

from mixoff.cache.staging import InFlight
from mixoff.policies.residency import Decision
from mixoff.tiers.buffers import Buffer, Expert
from mixoff.trace.events import Demand, Missed, Observer


class ActiveDemand:
    """A demand that is being served.

    Parameters
    ----------
    layer, tokens
        The layer, and how many tokens chose its experts.
    decision
        Hits, misses and evictions.
    residents
        The layer's residents once the demand is complete.
    observers
        Those attached now: one that is attached later isn't notified of this demand.
    computed
        Misses that are computed in host memory, each with its number of tokens.
    """

    def __init__(
        self,
        layer: int,
        tokens: int,
        decision: Decision,
        residents: frozenset[int],
        observers: tuple[Observer, ...],
        computed: Mapping[int, int],
    ) -> None:
        self.layer = layer
        self.tokens = tokens
        self.decision = decision
        self.residents = residents
        self.observers = observers
        self.computed = dict(computed)
        self.borrowed: dict[int, Buffer] = {}  # host buffers of `computed` that aren't served yet
        self.in_flight: dict[int, InFlight] = {}
        self.unserved = [*decision.hits, *decision.misses]
        # Residents to evict, one with each miss that fills a slot. A victim that is a miss itself
        # (a later miss displaced it, or it bypassed) never fills a slot that it could lose.
        victims = [victim for _, victim in decision.evictions if victim is not None]
        self.victims = [victim for victim in victims if victim not in decision.misses]
        # If not all of the demand's experts stay, the order of its misses has decided which do.
        # They are served in that order then, and else as they arrive.
        self.in_order = not residents.issuperset(set(self.unserved) - self.computed.keys())
        self.arrivals: list[Missed] = []
        self.start_ns = perf_counter_ns()
        self.has_ended = False

    def event(self) -> Demand:
        """Return what observers are notified of when the demand has ended."""
        return Demand(
            self.layer,
            self.tokens,
            self.start_ns,
            perf_counter_ns(),
            self.decision.hits,
            self.decision.misses,
            tuple(self.arrivals),
            self.decision.evictions,
            complete=not self.unserved,
        )


class ExpertStream(Iterator[tuple[int, Expert]]):
    """An iterator over a demand's experts, each valid until the next one is requested."""

    def __init__(
        self, demand: ActiveDemand, experts: Generator[tuple[int, Expert], None, None]
    ) -> None:
        self._computed = demand.computed
        self._experts = experts

    @property
    def computed(self) -> frozenset[int]:
        """Those whose tensors are in host memory apart from the device's, to be computed there.

        If another demand interrupts this one, those not served yet are fetched, and no longer
        among them.
        """
        return frozenset(self._computed)

    def __next__(self) -> tuple[int, Expert]:
        return next(self._experts)

    def close(self) -> None:
        """End the demand."""
        self._experts.close()
