"""How a demand is served: hits from slots, misses as they arrive, and who gives way to them.

Knows buffers and what comes into them; who stays and who leaves is decided elsewhere, before.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from time import perf_counter_ns

from mixoff.cache.demand import ActiveDemand
from mixoff.cache.miss_choice import Candidate, MissChooser
from mixoff.cache.staging import InFlight, Staging, fetch_into
from mixoff.errors import MixoffError
from mixoff.tiers.buffers import Buffer, Expert, Pool
from mixoff.tiers.mover import Fetch, Mover
from mixoff.tiers.record import RecordLayout
from mixoff.trace.events import Missed, Observer, Span


class Server:
    """Serves demands out of slots and what comes into them.

    Parameters
    ----------
    mover
        Moves records.
    layouts
        ``layouts[layer][expert]``: where a record's tensors lie in it.
    pool
        Gives buffers.
    staging
        Holds guesses.
    observers
        Are told of copies.
    choice
        Says which misses are computed where they lie.
    """

    def __init__(
        self,
        mover: Mover,
        layouts: Sequence[Sequence[RecordLayout]],
        pool: Pool,
        staging: Staging,
        observers: Sequence[Observer],
        choice: MissChooser,
    ) -> None:
        self.slots: list[dict[int, Buffer]] = [{} for _ in layouts]
        self.bytes_moved = self.wait_ns = self.computed = self.computed_ns = 0
        self._choice = choice
        self._copied: list[tuple[int, Span]] = []  # of the demand before: sizes, and how long
        self.is_closed = False
        self.present: ActiveDemand | None = None  # the demand that slots are given away for
        self._mover = mover
        self._layouts = layouts
        self._pool = pool
        self._staging = staging
        self._observers = observers

    def check_open(self) -> None:
        """Raise MixoffError if the cache was closed."""
        if self.is_closed:
            raise MixoffError("this expert cache was closed: build the model again.")

    def has(self, layer: int, expert: int) -> bool:
        """Return whether an expert is in a slot, or on its way to the present demand."""
        serving = self.present
        coming = serving is not None and serving.layer == layer and expert in serving.coming
        return coming or expert in self.slots[layer]

    def load(self, layer: int, experts: Iterable[int]) -> None:
        """Fill a layer's slots, one after the other."""
        for expert in sorted(experts):
            coming = self._fetch(layer, expert)
            assert coming is not None, "there are as many buffers as slots, and more"
            self._arrive(coming)
            self.slots[layer][expert] = coming.fetch.buffer
            self._mover.slot_filled((layer, expert))

    def to_compute(self, layer: int, missed: Mapping[int, int]) -> dict[int, int]:
        """Return which of the misses, each with its number of tokens, to compute where they lie.

        One that a guess has brought to the device is there, and used.
        """
        if self._choice.miss == "fetch":
            return {}
        while self._copied:  # compute is past these copies, so that nobody waits for them
            nbytes, span = self._copied.pop()
            self._choice.note_fetched(nbytes, span()[1] / 1e9)
        candidates, queued = [], 0
        for expert, tokens in missed.items():
            key = (layer, expert)
            left = self._staging.left(key, self._mover.nbytes(key))
            if left and self._mover.in_host_memory(key):
                candidates.append(Candidate(expert, left, tokens))
            else:
                queued += left
        chosen = self._choice.computed(candidates, queued)
        return {expert: tokens for expert, tokens in missed.items() if expert in chosen}

    def begin(self, serving: ActiveDemand) -> None:
        """Begin to fetch what a demand misses; guesses of it are adopted, others passed by."""
        self.present = serving
        for expert in serving.computed:
            serving.beside[expert] = self._mover.borrow((serving.layer, expert))
        for expert in serving.decision.misses:
            if expert in serving.computed:
                continue
            if (guessed := self._staging.adopt((serving.layer, expert))) is not None:
                serving.coming[expert] = guessed
        self._staging.pass_by(serving.layer)
        self._request(serving)

    def serve(
        self, serving: ActiveDemand, end: Callable[[ActiveDemand], None]
    ) -> Generator[tuple[int, Expert], None, None]:
        """Yield each expert of a demand, and call `end` when it is over, however it ends."""
        layer = serving.layer
        try:
            while serving.unserved:
                expert = self._next(serving)
                if expert in serving.beside:
                    yield from self._compute(serving, expert)
                    continue
                passing = None
                if expert not in self.slots[layer]:
                    passing = self._receive(serving, expert)
                serving.unserved.remove(expert)
                buffer = self.slots[layer][expert] if passing is None else passing
                try:
                    yield expert, buffer.expert(self._layouts[layer][expert])
                finally:
                    if passing is not None:
                        self._part(layer, expert, passing)
        finally:
            end(serving)

    def _compute(self, serving: ActiveDemand, expert: int) -> Iterator[tuple[int, Expert]]:
        """Yield an expert where it lies beside the device, and note how long it was computed."""
        self.check_open()
        start_ns, buffer = perf_counter_ns(), serving.beside.pop(expert)
        there_ns = None
        try:
            self._mover.wait_until_in_host_memory((serving.layer, expert), buffer)
            serving.unserved.remove(expert)
            there_ns = perf_counter_ns()
            yield expert, buffer.expert(self._layouts[serving.layer][expert])
            self._choice.note_computed(
                serving.computed[expert], (perf_counter_ns() - there_ns) / 1e9
            )
        finally:
            self._mover.give_back(buffer)
            if there_ns is not None:
                self._note_computed(serving, expert, start_ns, there_ns)

    def _note_computed(
        self, serving: ActiveDemand, expert: int, start_ns: int, there_ns: int
    ) -> None:
        wait_ns, computed_ns = there_ns - start_ns, perf_counter_ns() - there_ns
        self.wait_ns += wait_ns
        self.computed += 1
        self.computed_ns += computed_ns
        missed = Missed(expert, "host", 0, start_ns, wait_ns, computed_ns=computed_ns)
        serving.arrivals.append(missed)

    def _next(self, serving: ActiveDemand) -> int:
        """Return who is served next.

        These are hits, then what has arrived, then what is computed where it lies while other
        misses come, and then what is waited for.
        """
        first = serving.unserved[0]
        if first in self.slots[serving.layer] or serving.is_over:
            return first
        self._request(serving)
        fetched = [expert for expert in serving.unserved if expert not in serving.beside]
        for expert in fetched[:1] if serving.in_order else serving.coming:
            if expert in serving.coming and serving.coming[expert].is_ready:
                return expert
        return next(iter(serving.beside)) if serving.beside else fetched[0]

    def _request(self, serving: ActiveDemand) -> None:
        """Begin to fetch the demand's misses, as many as there are buffers for."""
        for expert in serving.unserved:
            if expert in self.slots[serving.layer] or expert in serving.coming:
                continue
            if expert in serving.beside:
                continue
            coming = self._fetch(serving.layer, expert)
            if coming is None:
                return
            serving.coming[expert] = coming

    def _fetch(self, layer: int, expert: int) -> InFlight | None:
        """Begin to fetch an expert, or take it where it lies; None if no buffer is free yet."""
        key = (layer, expert)
        if (lent := self._mover.take_kept(key)) is not None:
            return InFlight(Fetch(key, lent, tier="host"), None)
        while (buffer := self._pool.take()) is None:
            if not self._staging.give_up_one():
                return None
        return fetch_into(buffer, key, self._mover, self._observers)

    def _fetch_first(self, serving: ActiveDemand, expert: int) -> InFlight:
        """Begin to fetch the expert that is served next, whatever has to wait for that."""
        while (coming := self._fetch(serving.layer, expert)) is None:
            if self._pool.wait():
                continue
            waiting = serving if serving.coming or self.present is None else self.present
            if not waiting.coming:
                raise MixoffError("too many demands are open at once: read each to its end.")
            self._abandon(waiting.coming.popitem()[1])
        return coming

    def _receive(self, serving: ActiveDemand, expert: int) -> Buffer | None:
        """Wait for a miss and give it its slot; a buffer is returned if it gets none."""
        self.check_open()
        layer = serving.layer
        if expert not in serving.coming:
            serving.coming[expert] = self._fetch_first(serving, expert)
        coming = serving.coming[expert]
        missed = self._arrive(coming)
        del serving.coming[expert]
        serving.arrivals.append(missed)
        if self._choice.miss == "auto" and coming.fetch.tier == "host" and coming.fetch.span:
            self._copied.append((coming.fetch.nbytes, coming.fetch.span))
        self.bytes_moved += coming.fetch.nbytes
        self.wait_ns += missed.wait_ns
        if serving.is_over or expert not in serving.staying:
            return coming.fetch.buffer
        self.slots[layer][expert] = coming.fetch.buffer
        self._mover.slot_filled((layer, expert))
        if serving.leaving:  # after that: a victim may take the place that its successor left
            self.vacate(layer, serving.leaving.pop(0))
        return None

    def _arrive(self, coming: InFlight) -> Missed:
        """Wait until a record is in its buffer, as compute does from here on."""
        fetch, start_ns = coming.fetch, perf_counter_ns()
        staged = coming.layers_ahead > 0 and coming.is_ready
        if coming.ticket is not None and not coming.ticket.done:
            coming.ticket.wait()
        wait_ns = perf_counter_ns() - start_ns
        span = self._mover.before_use(fetch.buffer)
        tier = "staged" if staged else fetch.tier
        return Missed(fetch.key[1], tier, fetch.nbytes, start_ns, wait_ns, span)

    def vacate(self, layer: int, victim: int) -> None:
        """Take a resident's slot."""
        self._part(layer, victim, self.slots[layer].pop(victim))

    def _part(self, layer: int, expert: int, buffer: Buffer) -> None:
        """Let an expert go that was on the device, and have a buffer back."""
        if self.is_closed:
            return
        free, ticket = self._mover.evict((layer, expert), buffer)
        if free is not None:
            self._pool.give(free, after=ticket)

    def abandon(self, serving: ActiveDemand) -> None:
        """Give up what is still on its way to a demand, or lies beside the device for it."""
        for coming in serving.coming.values():
            self._abandon(coming)
        serving.coming.clear()
        for expert, buffer in serving.beside.items():
            self._mover.give_back(buffer)
            del serving.computed[expert]
        serving.beside.clear()

    def _abandon(self, coming: InFlight) -> None:
        if coming.ticket is None:  # it was lent
            self._part(*coming.fetch.key, coming.fetch.buffer)
            return
        coming.ticket.cancel()
        self._pool.give(coming.fetch.buffer, after=coming.ticket)
