"""How a demand is served: hits from slots, misses as they arrive or computed in host memory.

Knows the order of serving; which experts stay and which are evicted was decided before.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from time import perf_counter_ns

from mixoff.cache.demand import ActiveDemand
from mixoff.cache.miss_choice import Candidate, MissChooser
from mixoff.cache.staging import InFlight
from mixoff.cache.state import CacheState
from mixoff.cache.stats import CacheStats
from mixoff.errors import MixoffError
from mixoff.tiers.buffers import Buffer, Expert
from mixoff.tiers.mover import HostSide
from mixoff.tiers.record import RecordLayout
from mixoff.trace.events import Missed, Span


class DemandServer:
    """Serves demands from a cache's slots, and counts hits, misses, bytes and waiting.

    Parameters
    ----------
    state
        What the cache holds.
    layouts
        ``layouts[layer][expert]``: where a record's tensors lie in it.
    chooser
        Chooses the misses that are computed in host memory.
    """

    def __init__(
        self, state: CacheState, layouts: Sequence[Sequence[RecordLayout]], chooser: MissChooser
    ) -> None:
        self._state = state
        self._layouts = layouts
        self._chooser = chooser
        self._hits, self._misses = [0] * len(layouts), [0] * len(layouts)
        self._bytes_moved = self._wait_ns = self._computed = self._computed_ns = 0
        self._copied: list[tuple[int, Span]] = []  # bytes and time of misses since the last choice

    def stats(self) -> CacheStats:
        """Return what was counted so far."""
        staging = self._state.staging
        return CacheStats(
            tuple(self._hits),
            tuple(self._misses),
            self._bytes_moved,
            staging.bytes_wasted,
            staging.outcomes["used"],
            staging.outcomes["late"],
            staging.outcomes["wasted"],
            self._wait_ns,
            self._computed,
            self._computed_ns,
        )

    def load(self, layer: int) -> None:
        """Fill the slots of a layer's residents, one after the other."""
        for expert in sorted(self._state.residency[layer].residents):
            in_flight = self._state.fetch((layer, expert))
            assert in_flight is not None, "there are more buffers than slots"
            self._arrive(in_flight)
            self._state.fill_slot((layer, expert), in_flight.fetch.buffer)

    def begin(
        self, layer: int, needed: Iterable[int], tokens: int, chosen_by: Mapping[int, int] | None
    ) -> ActiveDemand:
        """Decide a demand and begin to fetch its misses; it interrupts the active demand."""
        state = self._state
        state.check_open()
        if state.active is not None:
            state.end(state.active)
        residency = state.residency[layer]
        computed: dict[int, int] = {}
        if self._chooser.miss != "fetch" and state.host_side is not None:
            needed = set(needed)
            missed = {e: chosen_by[e] if chosen_by else tokens for e in residency.missed(needed)}
            computed = self._choose_computed(layer, missed, state.host_side)
        decision = residency.demand(needed, computed)
        self._hits[layer] += len(decision.hits)
        self._misses[layer] += len(decision.misses)
        demand = ActiveDemand(
            layer, tokens, decision, residency.residents, state.observers.attached, computed
        )
        state.active = demand
        if state.host_side is not None:
            for expert in computed:
                demand.borrowed[expert] = state.host_side.borrow((layer, expert))
        for expert in decision.misses:
            if expert not in computed and (guess := state.staging.adopt((layer, expert))):
                demand.in_flight[expert] = guess
        state.staging.mark_stale(layer)
        self._request(demand)
        return demand

    def serve(self, demand: ActiveDemand) -> Generator[tuple[int, Expert], None, None]:
        """Yield each expert of a demand, and end it, however the generator ends."""
        state, layer = self._state, demand.layer
        try:
            while demand.unserved:
                expert = self._next(demand)
                if expert in demand.borrowed:
                    yield from self._compute(demand, expert)
                    continue
                passing = None
                if expert not in state.slots[layer]:
                    passing = self._receive(demand, expert)
                demand.unserved.remove(expert)
                layout = self._layouts[layer][expert]
                if passing is None:
                    yield expert, state.slots[layer][expert].expert(layout)
                    continue
                state.passing.append(passing)
                try:
                    yield expert, passing.expert(layout)
                finally:
                    state.passing.remove(passing)
                    state.drop((layer, expert), passing)
        finally:
            state.end(demand)

    def _choose_computed(
        self, layer: int, missed: Mapping[int, int], host_side: HostSide
    ) -> dict[int, int]:
        """Return the misses, each with its number of tokens, to compute in host memory.

        A record that a guess has copied whole isn't among them: it is on the device.
        """
        while self._copied:  # compute is past these copies, so that their times take no waiting
            nbytes, span = self._copied.pop()
            self._chooser.note_fetched(nbytes, span()[1] / 1e9)
        candidates, queued = [], 0
        for expert, tokens in missed.items():
            key = (layer, expert)
            missing = self._state.staging.nbytes_missing(key, self._state.mover.nbytes(key))
            if missing and host_side.in_host_memory(key):
                candidates.append(Candidate(expert, missing, tokens))
            else:
                queued += missing
        chosen = self._chooser.computed(candidates, queued)
        return {expert: tokens for expert, tokens in missed.items() if expert in chosen}

    def _compute(self, demand: ActiveDemand, expert: int) -> Iterator[tuple[int, Expert]]:
        """Yield an expert in host memory, and note how long it was computed."""
        self._state.check_open()
        host_side = self._state.host_side
        assert host_side is not None, "only a mover with host memory lends buffers"
        key = (demand.layer, expert)
        start_ns, buffer = perf_counter_ns(), demand.borrowed.pop(expert)
        ready_ns = None
        try:
            host_side.wait_until_in_host_memory(key, buffer)
            demand.unserved.remove(expert)
            ready_ns = perf_counter_ns()
            yield expert, buffer.expert(self._layouts[demand.layer][expert])
            self._chooser.note_computed(
                demand.computed[expert], (perf_counter_ns() - ready_ns) / 1e9
            )
        finally:
            host_side.give_back(buffer)
            if ready_ns is not None:
                self._note_computed(demand, expert, start_ns, ready_ns)

    def _note_computed(
        self, demand: ActiveDemand, expert: int, start_ns: int, ready_ns: int
    ) -> None:
        wait_ns, computed_ns = ready_ns - start_ns, perf_counter_ns() - ready_ns
        self._wait_ns += wait_ns
        self._computed += 1
        self._computed_ns += computed_ns
        missed = Missed(expert, "host", 0, start_ns, wait_ns, computed_ns=computed_ns)
        demand.arrivals.append(missed)

    def _next(self, demand: ActiveDemand) -> int:
        """Return the expert to serve next.

        Hits are first, then misses that are ready, then those computed in host memory, during
        which others are copied, and last those that have to be waited for.
        """
        first = demand.unserved[0]
        if first in self._state.slots[demand.layer] or demand.has_ended:
            return first
        self._request(demand)
        fetched = [expert for expert in demand.unserved if expert not in demand.borrowed]
        for expert in fetched[:1] if demand.in_order else demand.in_flight:
            if expert in demand.in_flight and demand.in_flight[expert].is_ready:
                return expert
        return next(iter(demand.borrowed)) if demand.borrowed else fetched[0]

    def _request(self, demand: ActiveDemand) -> None:
        """Begin to fetch the demand's misses, as many as there are buffers for."""
        for expert in demand.unserved:
            if expert in self._state.slots[demand.layer] or expert in demand.in_flight:
                continue
            if expert in demand.borrowed:
                continue
            in_flight = self._state.fetch((demand.layer, expert))
            if in_flight is None:
                return
            demand.in_flight[expert] = in_flight

    def _fetch_next(self, demand: ActiveDemand, expert: int) -> InFlight:
        """Begin to fetch the expert that is served next, whatever else loses its buffer."""
        state = self._state
        while (in_flight := state.fetch((demand.layer, expert))) is None:
            if state.pool.wait():
                continue
            holder = demand if demand.in_flight or state.active is None else state.active
            if not holder.in_flight:
                raise MixoffError("too many demands are open at once: read each to its end.")
            state.cancel(holder.in_flight.popitem()[1])
        return in_flight

    def _receive(self, demand: ActiveDemand, expert: int) -> Buffer | None:
        """Wait for a miss and put it into a slot; return its buffer if it gets none."""
        state = self._state
        state.check_open()
        if expert not in demand.in_flight:
            demand.in_flight[expert] = self._fetch_next(demand, expert)
        in_flight = demand.in_flight[expert]
        missed = self._arrive(in_flight)
        del demand.in_flight[expert]
        self._note_fetched(demand, in_flight, missed)
        fetch = in_flight.fetch
        if demand.has_ended or expert not in demand.residents:
            return fetch.buffer
        # First the slot is filled, then the victim evicted. Where host memory is exclusive, the
        # record's host buffer becomes spare and takes the victim. In the opposite order, and with
        # host memory full, the victim would displace another record there.
        state.fill_slot(fetch.key, fetch.buffer)
        if demand.victims:
            state.evict(demand.layer, demand.victims.pop(0))
        return None

    def _note_fetched(self, demand: ActiveDemand, in_flight: InFlight, missed: Missed) -> None:
        fetch = in_flight.fetch
        demand.arrivals.append(missed)
        if self._chooser.miss == "auto" and fetch.tier == "host" and fetch.span:
            self._copied.append((fetch.nbytes, fetch.span))
        self._bytes_moved += fetch.nbytes
        self._wait_ns += missed.wait_ns

    def _arrive(self, in_flight: InFlight) -> Missed:
        """Wait until a record is in its buffer, and order compute after its copy."""
        fetch, start_ns = in_flight.fetch, perf_counter_ns()
        staged = in_flight.layers_ahead > 0 and in_flight.is_ready
        if in_flight.ticket is not None and not in_flight.ticket.done:
            in_flight.ticket.wait()
        wait_ns = perf_counter_ns() - start_ns
        span = self._state.mover.before_use(fetch.buffer)
        tier = "staged" if staged else fetch.tier
        return Missed(fetch.key[1], tier, fetch.nbytes, start_ns, wait_ns, span)
