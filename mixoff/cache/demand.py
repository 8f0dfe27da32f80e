"""A demand that is being served, and its experts as they come. Knows who is to come; no bytes."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from time import perf_counter_ns

from mixoff.cache.staging import InFlight
from mixoff.policies.residency import Decision
from mixoff.tiers.buffers import Buffer, Expert
from mixoff.trace.events import Missed, Observer


class ActiveDemand:
    """A demand that is being served."""

    def __init__(
        self,
        layer: int,
        tokens: int,
        decision: Decision,
        staying: frozenset[int],
        observers: Sequence[Observer],
        computed: Mapping[int, int] | None = None,
    ) -> None:
        self.observers = tuple(observers)  # a recording that begins later begins behind it
        self.computed = dict(computed or {})  # tokens of misses that are computed where they lie
        self.beside: dict[int, Buffer] = {}  # where those lie that are still to come
        self.layer = layer
        self.tokens = tokens
        self.decision = decision
        self.staying = staying
        victims = [victim for _, victim in decision.evictions if victim is not None]
        self.leaving = [victim for victim in victims if victim not in decision.misses]
        self.unserved = [*decision.hits, *decision.misses]
        self.coming: dict[int, InFlight] = {}
        self.arrivals: list[Missed] = []
        self.start_ns = perf_counter_ns()
        self.is_over = False
        # Who of the demand stays depends on the misses' order then, so that they are taken in it.
        self.in_order = not staying.issuperset(set(self.unserved) - self.computed.keys())


class ExpertStream(Iterator[tuple[int, Expert]]):
    """A demand's experts, each valid until the next one is asked for."""

    def __init__(
        self, serving: ActiveDemand, given: Generator[tuple[int, Expert], None, None]
    ) -> None:
        self._computed = serving.computed
        self._given = given

    @property
    def computed(self) -> frozenset[int]:
        """Those whose tensors lie in host memory beside the device, and are computed there.

        If another demand interrupts, those still to come are fetched, and no longer among them.
        """
        return frozenset(self._computed)

    def __next__(self) -> tuple[int, Expert]:
        return next(self._given)

    def close(self) -> None:
        """End the demand."""
        self._given.close()
