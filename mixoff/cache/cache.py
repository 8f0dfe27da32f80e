"""The expert cache: who is resident, where their bytes are, and what is fetched next.

Deciding is `residency`'s and moving a `Mover`'s; this module joins the two, so that a demand's
misses come while its hits are computed, and guesses of later demands come behind them. It serves
one thread at a time, and knows nothing of models.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch

from mixoff.cache.demand import ActiveDemand, ExpertStream
from mixoff.cache.miss_choice import Miss, MissChooser
from mixoff.cache.observers import tell_demand, tell_state
from mixoff.cache.serving import Server
from mixoff.cache.staging import Staging
from mixoff.cache.stats import CacheStats
from mixoff.errors import ConfigError, MixoffError
from mixoff.policies.base import Policy
from mixoff.policies.registry import policy_name, policy_named
from mixoff.policies.residency import Residency
from mixoff.tiers.buffers import Pool
from mixoff.tiers.mover import Mover
from mixoff.tiers.record import RecordLayout
from mixoff.trace import Recorder, Trace
from mixoff.trace.events import Observer, Reason


class ExpertCache:
    """Keeps some of each layer's experts on the device and fetches the others when needed.

    Parameters
    ----------
    mover
        Moves records between the device and what is below it.
    layouts
        ``layouts[layer][expert]``: where a record's tensors lie in it.
    slots_per_layer
        How many experts of a layer are resident; with 0 each goes as soon as it was used.
    policy
        Who leaves first: a name in `mixoff.policies.POLICIES` or a `Policy`.
    staging
        Buffers that belong to no layer, through which misses and guesses come.
    device
        Where slots lie.
    miss
        Which misses are computed where they lie: "fetch" (none), "compute" or "auto", as
        `mixoff.OffloadConfig` has them. Without host memory beside the device none is.

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
        miss: Miss = "fetch",
    ) -> None:
        self.num_experts = len(layouts[0])
        self.device = torch.device(device)
        self.policy = policy_named(policy)
        self._check_slots(slots_per_layer)
        self.miss = miss
        self.provenance: dict[str, Any] = {}  # what recordings tell of the model and the run
        self._mover = mover
        self._layouts = layouts
        self._residency = [
            Residency(self.num_experts, slots_per_layer, self.policy, layer)
            for layer in range(len(layouts))
        ]
        self._num_staging = staging
        self._pool = Pool(mover.allocate, self._limit(slots_per_layer))
        self._observers: list[Observer] = []
        self._staging = Staging(mover, self._pool, self._observers)
        self._server = Server(
            mover, layouts, self._pool, self._staging, self._observers, MissChooser(miss)
        )
        self._hits = [0] * len(layouts)
        self._misses = [0] * len(layouts)
        self._shut = weakref.finalize(self, _shut, mover)
        try:
            for layer, residency in enumerate(self._residency):
                self._server.load(layer, residency.residents)
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
        self,
        layer: int,
        needed: Iterable[int],
        *,
        tokens: int = 1,
        chosen_by: Mapping[int, int] | None = None,
    ) -> ExpertStream:
        """Begin to fetch what a layer misses, and return an iterator over all that it needs.

        Each needed expert comes once: residents first, then misses as they arrive. An expert is
        valid until the next one is asked for, so that a layer may need more experts than it has
        slots. A demand that another one interrupts goes on, but gives no more slots away. Those
        among its `computed` are given where they lie in host memory, to be computed there.

        Parameters
        ----------
        tokens
            How many tokens chose the experts; more than one is a prefill.
        chosen_by
            How many chose each expert; by default all of them.

        Raises
        ------
        CheckpointError
            If a record can't be read; the cache stays usable.
        MixoffError
            If the cache was closed.
        """
        self._server.check_open()
        if self._server.present is not None:
            self._end(self._server.present)
        residency = self._residency[layer]
        computed = {}
        if self.miss != "fetch":
            needed = set(needed)
            missed = {e: chosen_by[e] if chosen_by else tokens for e in residency.missed(needed)}
            computed = self._server.to_compute(layer, missed)
        decision = residency.demand(needed, computed)
        self._hits[layer] += len(decision.hits)
        self._misses[layer] += len(decision.misses)
        serving = ActiveDemand(
            layer, tokens, decision, residency.residents, self._observers, computed
        )
        self._server.begin(serving)
        return ExpertStream(serving, self._server.serve(serving, self._end))

    def prefetch(self, layer: int, experts: Iterable[int], *, layers_ahead: int = 1) -> None:
        """Begin to fetch experts that a layer may need soon, the likeliest first.

        Those that are on the device already are passed over, and so are those for which no buffer
        is left. Nobody leaves a slot for them, and hits and misses stay what they are without,
        unless a miss is computed where a guess comes too late and fetched where it doesn't.

        Parameters
        ----------
        layers_ahead
            How far ahead the layer is of the one that the guess was made in, 1 or more.
        """
        for expert in experts:
            key = (layer, expert)
            if self._server.has(layer, expert) or key in self._staging or self._mover.holds(key):
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

    def busy_cores(self) -> int:
        """Return how many cores move bytes now, that could compute."""
        return self._mover.busy_cores

    def residents(self, layer: int) -> frozenset[int]:
        """Return the experts that a layer has on the device now."""
        return frozenset(self._server.slots[layer])

    def stats(self) -> CacheStats:
        """Return counts of hits, misses, bytes and waiting since the cache was made."""
        outcomes = self._staging.outcomes
        return CacheStats(
            tuple(self._hits),
            tuple(self._misses),
            self._server.bytes_moved,
            self._staging.bytes_wasted,
            outcomes["used"],
            outcomes["late"],
            outcomes["wasted"],
            self._server.wait_ns,
            self._server.computed,
            self._server.computed_ns,
        )

    def resize(self, slots_per_layer: int) -> None:
        """Change how many experts of a layer are resident, without reloading anything else.

        Raises
        ------
        ConfigError
            If it isn't 0 to the number of experts.
        MixoffError
            If the cache was closed.
        """
        self._server.check_open()
        self._check_slots(slots_per_layer)
        if self._server.present is not None:
            self._end(self._server.present)
        self._pool.limit = self._limit(slots_per_layer)
        for layer, residency in enumerate(self._residency):
            for victim in residency.resize(slots_per_layer):
                self._server.vacate(layer, victim)
            self._tell_state(layer, "resize", self._observers)
        self._pool.trim()

    def close(self) -> None:
        """Give back slots, host memory, files and threads; nothing can be acquired afterwards."""
        if self._server.present is not None:
            self._end(self._server.present)
        self._server.is_closed = True
        self._staging.drop_all()
        self._shut()
        for slots in self._server.slots:
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

    def _check_slots(self, slots_per_layer: int) -> None:
        if not 0 <= slots_per_layer <= self.num_experts:
            raise ConfigError(
                f"slots_per_layer={slots_per_layer}: a layer has {self.num_experts} experts, "
                f"so give 0 (nothing stays) to {self.num_experts}."
            )

    def _limit(self, slots_per_layer: int) -> int:
        """Return how many buffers there may be in all."""
        slots = slots_per_layer * len(self._residency)
        return slots + self._num_staging + self._mover.extra_buffers

    def _end(self, serving: ActiveDemand) -> None:
        """Settle a demand, whether it was served or not: the residents are those with a slot."""
        self._server.abandon(serving)
        if serving.is_over:
            return
        serving.is_over = True
        complete = not serving.unserved
        if self._server.present is serving:
            self._server.present = None
        if not complete:
            self._residency[serving.layer].residents = self._server.slots[serving.layer]
        if self._observers:
            tell_demand(serving, self._observers, complete=complete)
            if not complete:
                self._tell_state(serving.layer, "interrupted", self._observers)

    def _tell_state(self, layer: int, reason: Reason, observers: Iterable[Observer]) -> None:
        tell_state(layer, self._residency[layer], reason, observers)

    def _provenance(self) -> dict[str, Any]:
        layers = range(len(self._layouts))
        return (
            self.provenance
            | self._mover.facts()
            | {
                "num_experts": self.num_experts,
                "num_layers": len(self._layouts),
                "record_nbytes": [self._mover.nbytes((layer, 0)) for layer in layers],
                "policy": policy_name(self.policy),
                "slots_per_layer": self.slots_per_layer,
                "staging": self._num_staging,
                "miss": self.miss,
                "device": str(self.device),
            }
        )


def cache_of(model: torch.nn.Module) -> ExpertCache:
    """Return the expert cache of a model that mixoff built.

    Raises
    ------
    MixoffError
        If the model has none.
    """
    if (cache := find_cache(model)) is None:
        raise MixoffError(
            f"{type(model).__name__} has no expert cache: build it with mixoff.build_model."
        )
    return cache


def find_cache(model: torch.nn.Module) -> ExpertCache | None:
    """Return the expert cache of a model, or None if it has none."""
    caches = (getattr(module, "cache", None) for module in model.modules())
    return next((cache for cache in caches if isinstance(cache, ExpertCache)), None)


def _shut(mover: Mover) -> None:
    mover.transfers.close()
    mover.close()
