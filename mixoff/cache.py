"""The expert cache: who is resident, where their bytes are, and what is fetched next.

Deciding is `residency`'s and moving a `Mover`'s; this module joins the two, so that a demand's
misses come while its hits are computed, and guesses of later demands come behind them. It serves
one thread at a time, and knows nothing of models.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from time import perf_counter_ns
from typing import Any, Literal, NoReturn

import torch

from mixoff.buffers import Buffer, Expert, Pool
from mixoff.errors import ConfigError, MixoffError
from mixoff.events import Demand, Missed, Observer, Snapshot
from mixoff.policies import Policy, Usage, policy_name, policy_named
from mixoff.records import RecordLayout
from mixoff.residency import Decision, Residency
from mixoff.staging import Coming, Staging, fetch_into
from mixoff.stats import CacheStats
from mixoff.tiers import Fetch, Mover
from mixoff.trace import Recorder, Trace


class _Serving:
    """A demand that is being served."""

    def __init__(
        self,
        layer: int,
        tokens: int,
        decision: Decision,
        staying: frozenset[int],
        observers: Sequence[Observer],
    ) -> None:
        self.observers = tuple(observers)  # a recording that begins later begins behind it
        self.layer = layer
        self.tokens = tokens
        self.decision = decision
        self.staying = staying
        victims = [victim for _, victim in decision.evictions if victim is not None]
        self.leaving = [victim for victim in victims if victim not in decision.misses]
        self.unserved = [*decision.hits, *decision.misses]
        self.coming: dict[int, Coming] = {}
        self.arrivals: list[Missed] = []
        self.start_ns = perf_counter_ns()
        self.is_over = False
        # Who of the demand stays depends on the misses' order then, so that they are taken in it.
        self.in_order = not staying.issuperset(self.unserved)


class ExpertCache:
    """Keeps some of each layer's experts on the device and fetches the others when needed.

    Parameters
    ----------
    mover
        Moves records between the device and what is below it.
    layouts
        ``layouts[layer][expert]``: where a record's tensors lie in it.
    slots_per_layer
        How many experts of a layer are resident.
    policy
        Who leaves first: a name in `mixoff.policies.POLICIES` or a `Policy`.
    staging
        Buffers that belong to no layer, through which misses and guesses come.
    device
        Where slots lie.

    Raises
    ------
    CheckpointError
        If a record that starts on the device can't be read.
    """

    def __init__(
        self,
        mover: Mover,
        layouts: Sequence[Sequence[RecordLayout]],
        *,
        slots_per_layer: int,
        policy: str | Policy = "lru",
        staging: int = 4,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_experts = len(layouts[0])
        self.device = torch.device(device)
        self.policy = policy_named(policy)
        self._check_slots(slots_per_layer)
        self.policy.scores(Usage.unseen(self.num_experts))  # one that can't serve says so now
        self.about: dict[str, Any] = {}  # what recordings tell of the model and the run
        self._mover = mover
        self._layouts = layouts
        self._residency = [
            Residency(self.num_experts, slots_per_layer, self.policy, layer)
            for layer in range(len(layouts))
        ]
        self._slots: list[dict[int, Buffer]] = [{} for _ in layouts]
        self._num_staging = staging
        self._pool = Pool(mover.allocate, self._limit(slots_per_layer))
        self._observers: list[Observer] = []
        self._staging = Staging(mover, self._pool, self._observers)
        self._serving: _Serving | None = None
        self._hits = [0] * len(layouts)
        self._misses = [0] * len(layouts)
        self._bytes_moved = self._wait_ns = 0
        self._closed = False
        self._shut = weakref.finalize(self, _shut, mover)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    @property
    def num_layers(self) -> int:
        """How many layers have experts."""
        return len(self._layouts)

    @property
    def slots_per_layer(self) -> int:
        """How many experts of a layer are resident."""
        return self._residency[0].num_slots

    def acquire(
        self, layer: int, needed: Iterable[int], *, tokens: int = 1
    ) -> Iterator[tuple[int, Expert]]:
        """Begin to fetch what a layer misses, and return an iterator over all that it needs.

        Each needed expert comes once: residents first, then misses as they arrive. An expert is
        valid until the next one is asked for, so that a layer may need more experts than it has
        slots. A demand that another one interrupts goes on, but gives no more slots away.

        Parameters
        ----------
        tokens
            How many tokens chose the experts; more than one is a prefill.

        Raises
        ------
        CheckpointError
            If a record can't be read; the cache stays usable.
        MixoffError
            If the cache was closed.
        """
        self._check_open()
        if self._serving is not None:
            self._end(self._serving)
        residency = self._residency[layer]
        decision = residency.demand(needed)
        self._hits[layer] += len(decision.hits)
        self._misses[layer] += len(decision.misses)
        self._serving = serving = _Serving(
            layer, tokens, decision, residency.residents, self._observers
        )
        for expert in decision.misses:
            if (guessed := self._staging.adopt((layer, expert))) is not None:
                serving.coming[expert] = guessed
        self._staging.pass_by(layer)
        self._request(serving)
        return self._serve(serving)

    def prefetch(self, layer: int, experts: Iterable[int], *, layers_ahead: int = 1) -> None:
        """Begin to fetch experts that a layer may need soon, the likeliest first.

        Those that are on the device already are passed over, and so are those for which no buffer
        is left. Nobody leaves a slot for them, and hits and misses stay what they are without.

        Parameters
        ----------
        layers_ahead
            How far ahead the layer is of the one that the guess was made in, 1 or more.
        """
        for expert in experts:
            key = (layer, expert)
            if self._is_here(layer, expert) or key in self._staging or self._mover.holds(key):
                continue
            if not self._staging.guess(key, layers_ahead):
                return

    @contextmanager
    def record(self) -> Iterator[Trace]:
        """Record what happens inside the ``with`` block; the trace it gives is filled at its end.

        Several recordings may run at once. The device is never made to wait.
        """
        trace, recorder = Trace(), Recorder()
        for layer in range(len(self._residency)):
            self._tell_state(layer, "start", [recorder])
        self._observers.append(recorder)
        try:
            yield trace
        finally:
            self._observers.remove(recorder)
            self._staging.tell_open(recorder)
            recorder.finish(provenance=self._provenance(), into=trace)

    def residents(self, layer: int) -> frozenset[int]:
        """Return the experts that a layer has on the device now."""
        return frozenset(self._slots[layer])

    def stats(self) -> CacheStats:
        """Return counts of hits, misses, bytes and waiting since the cache was made."""
        outcomes = self._staging.outcomes
        return CacheStats(
            tuple(self._hits),
            tuple(self._misses),
            self._bytes_moved,
            self._staging.bytes_wasted,
            outcomes["used"],
            outcomes["late"],
            outcomes["wasted"],
            self._wait_ns,
        )

    def resize(self, slots_per_layer: int) -> None:
        """Change how many experts of a layer are resident, without reloading anything else.

        Raises
        ------
        ConfigError
            If it isn't 1 to the number of experts.
        MixoffError
            If the cache was closed.
        """
        self._check_open()
        self._check_slots(slots_per_layer)
        if self._serving is not None:
            self._end(self._serving)
        self._pool.limit = self._limit(slots_per_layer)
        for layer, residency in enumerate(self._residency):
            for victim in residency.resize(slots_per_layer):
                self._vacate(layer, victim)
            self._tell_state(layer, "resize", self._observers)
        self._pool.trim()

    def close(self) -> None:
        """Give back slots, host memory, files and threads; nothing can be acquired afterwards."""
        if self._serving is not None:
            self._end(self._serving)
        self._closed = True
        self._staging.drop_all()
        self._shut()
        for slots in self._slots:
            slots.clear()
        self._pool.limit = 0
        self._pool.trim()

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise MixoffError(
            "an expert cache can't be copied, since its slots and files belong to one model: "
            "build the model again."
        )

    def __reduce__(self) -> NoReturn:
        raise MixoffError("an expert cache can't be pickled: build the model again.")

    def _check_open(self) -> None:
        if self._closed:
            raise MixoffError("this expert cache was closed: build the model again.")

    def _check_slots(self, slots_per_layer: int) -> None:
        if not 1 <= slots_per_layer <= self.num_experts:
            raise ConfigError(
                f"slots_per_layer={slots_per_layer}: a layer has {self.num_experts} experts, "
                f"so give 1 to {self.num_experts}."
            )

    def _limit(self, slots_per_layer: int) -> int:
        """Return how many buffers there may be in all."""
        slots = slots_per_layer * len(self._residency)
        return slots + self._num_staging + self._mover.extra_buffers

    def _load(self) -> None:
        for layer, residency in enumerate(self._residency):
            for expert in sorted(residency.residents):
                coming = self._fetch(layer, expert)
                assert coming is not None, "there are as many buffers as slots, and more"
                self._arrive(coming)
                self._slots[layer][expert] = coming.fetch.buffer
                self._mover.settled((layer, expert))

    def _is_here(self, layer: int, expert: int) -> bool:
        """Return whether an expert is in a slot, or on its way to the present demand."""
        serving = self._serving
        coming = serving is not None and serving.layer == layer and expert in serving.coming
        return coming or expert in self._slots[layer]

    # Serving a demand

    def _serve(self, serving: _Serving) -> Iterator[tuple[int, Expert]]:
        layer = serving.layer
        try:
            while serving.unserved:
                expert = self._next(serving)
                passing = None
                if expert not in self._slots[layer]:
                    passing = self._receive(serving, expert)
                serving.unserved.remove(expert)
                buffer = self._slots[layer][expert] if passing is None else passing
                try:
                    yield expert, buffer.expert(self._layouts[layer][expert])
                finally:
                    if passing is not None:
                        self._part(layer, expert, passing)
        finally:
            self._end(serving)

    def _next(self, serving: _Serving) -> int:
        """Return who is served next: hits, then what has arrived, then what is waited for."""
        first = serving.unserved[0]
        if first in self._slots[serving.layer] or serving.is_over:
            return first
        self._request(serving)
        if serving.in_order:
            return first
        there = (e for e, coming in serving.coming.items() if coming.is_there)
        return next(there, first)

    def _request(self, serving: _Serving) -> None:
        """Begin to fetch the demand's misses, as many as there are buffers for."""
        for expert in serving.unserved:
            if expert in self._slots[serving.layer] or expert in serving.coming:
                continue
            coming = self._fetch(serving.layer, expert)
            if coming is None:
                return
            serving.coming[expert] = coming

    def _fetch(self, layer: int, expert: int) -> Coming | None:
        """Begin to fetch an expert, or take it where it lies; None if no buffer is free yet."""
        key = (layer, expert)
        if (lent := self._mover.lend(key)) is not None:
            return Coming(Fetch(key, lent, tier="host"), None)
        while (buffer := self._pool.take()) is None:
            if not self._staging.give_up_one():
                return None
        return fetch_into(buffer, key, self._mover, self._observers)

    def _fetch_first(self, serving: _Serving, expert: int) -> Coming:
        """Begin to fetch the expert that is served next, whatever has to wait for that."""
        while (coming := self._fetch(serving.layer, expert)) is None:
            if self._pool.wait():
                continue
            waiting = serving if serving.coming or self._serving is None else self._serving
            if not waiting.coming:
                raise MixoffError("too many demands are open at once: read each to its end.")
            self._abandon(waiting.coming.popitem()[1])
        return coming

    def _receive(self, serving: _Serving, expert: int) -> Buffer | None:
        """Wait for a miss and give it its slot; a buffer is returned if it gets none."""
        self._check_open()
        layer = serving.layer
        if expert not in serving.coming:
            serving.coming[expert] = self._fetch_first(serving, expert)
        coming = serving.coming[expert]
        missed = self._arrive(coming)
        del serving.coming[expert]
        serving.arrivals.append(missed)
        self._bytes_moved += coming.fetch.nbytes
        self._wait_ns += missed.wait_ns
        if serving.is_over or expert not in serving.staying:
            return coming.fetch.buffer
        self._slots[layer][expert] = coming.fetch.buffer
        self._mover.settled((layer, expert))
        if serving.leaving:  # after that: a victim may take the place that its successor left
            self._vacate(layer, serving.leaving.pop(0))
        return None

    def _arrive(self, coming: Coming) -> Missed:
        """Wait until a record is in its buffer, as compute does from here on."""
        fetch, start_ns = coming.fetch, perf_counter_ns()
        staged = coming.layers_ahead > 0 and coming.is_there
        if coming.ticket is not None and not coming.ticket.done:
            coming.ticket.wait()
        wait_ns = perf_counter_ns() - start_ns
        span = self._mover.before_use(fetch.buffer)
        tier = "staged" if staged else fetch.tier
        return Missed(fetch.key[1], tier, fetch.nbytes, start_ns, wait_ns, span)

    def _vacate(self, layer: int, victim: int) -> None:
        self._part(layer, victim, self._slots[layer].pop(victim))

    def _part(self, layer: int, expert: int, buffer: Buffer) -> None:
        """Let an expert go that was on the device, and have a buffer back."""
        if self._closed:
            return
        free, ticket = self._mover.leave((layer, expert), buffer)
        if free is not None:
            self._pool.give(free, after=ticket)

    def _end(self, serving: _Serving) -> None:
        """Settle a demand, whether it was served or not: the residents are those with a slot."""
        for coming in serving.coming.values():
            self._abandon(coming)
        serving.coming.clear()
        if serving.is_over:
            return
        serving.is_over = True
        complete = not serving.unserved
        if self._serving is serving:
            self._serving = None
        if not complete:
            self._residency[serving.layer].residents = self._slots[serving.layer]
        if self._observers:
            self._tell(serving, complete)

    def _abandon(self, coming: Coming) -> None:
        if coming.ticket is None:  # it was lent
            self._part(*coming.fetch.key, coming.fetch.buffer)
            return
        coming.ticket.cancel()
        self._pool.give(coming.fetch.buffer, after=coming.ticket)

    # Telling

    def _tell(self, serving: _Serving, complete: bool) -> None:
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
            if observer in self._observers:
                observer.demand(demand)
        if not complete:
            self._tell_state(serving.layer, "interrupted", self._observers)

    def _tell_state(
        self,
        layer: int,
        reason: Literal["start", "resize", "interrupted"],
        observers: Iterable[Observer],
    ) -> None:
        residency = self._residency[layer]
        for observer in observers:
            usage = deepcopy(residency.usage)
            state = Snapshot(layer, reason, residency.num_slots, residency.residents, usage)
            observer.snapshot(state)

    def _provenance(self) -> dict[str, Any]:
        layers = range(len(self._layouts))
        return self.about | {
            "num_experts": self.num_experts,
            "num_layers": len(self._layouts),
            "record_nbytes": [self._mover.nbytes((layer, 0)) for layer in layers],
            "policy": policy_name(self.policy),
            "slots_per_layer": self.slots_per_layer,
            "staging": self._num_staging,
            "device": str(self.device),
        }


def cache_of(model: torch.nn.Module) -> ExpertCache:
    """Return the expert cache of a model that mixoff built.

    Raises
    ------
    MixoffError
        If the model has none.
    """
    for module in model.modules():
        if isinstance(cache := getattr(module, "cache", None), ExpertCache):
            return cache
    raise MixoffError(
        f"{type(model).__name__} has no expert cache: build it with mixoff.build_model."
    )


def _shut(mover: Mover) -> None:
    mover.transfers.close()
    mover.close()
