"""What a cache tells its observers, put together. Knows demands and layers; decides nothing."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from time import perf_counter_ns

from mixoff.cache.demand import ActiveDemand
from mixoff.policies.residency import Residency
from mixoff.trace.events import Demand, Observer, Reason, Snapshot


def tell_demand(serving: ActiveDemand, watching: Sequence[Observer], *, complete: bool) -> None:
    """Tell of a demand that has ended those who watched when it began, and still do."""
    decision = serving.decision
    demand = Demand(
        serving.layer,
        serving.tokens,
        serving.start_ns,
        perf_counter_ns(),
        decision.hits,
        decision.misses,
        tuple(serving.arrivals),
        decision.evictions,
        complete,
    )
    for observer in serving.observers:
        if observer in watching:
            observer.demand(demand)


def tell_state(
    layer: int, residency: Residency, reason: Reason, observers: Iterable[Observer]
) -> None:
    """Tell of a layer's state, a copy for each observer."""
    for observer in observers:
        usage = deepcopy(residency.usage)
        state = Snapshot(layer, reason, residency.num_slots, residency.residents, usage)
        observer.snapshot(state)
