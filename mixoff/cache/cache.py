"""The expert cache: its public methods, and recordings of what it does.

`CacheState` has what the cache holds, and `DemandServer` serves demands from it: a demand's misses
are copied while its hits are computed, and guesses of later demands after them. A cache serves one
thread at a time, and knows nothing of models.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch

from mixoff.cache.demand import ExpertStream
from mixoff.cache.miss_choice import MissChooser
from mixoff.cache.observers import Observers, snapshot_of
from mixoff.cache.serving import DemandServer
from mixoff.cache.state import CacheState
from mixoff.cache.stats import CacheStats
from mixoff.config import Miss
from mixoff.errors import ConfigError, MixoffError
from mixoff.policies.base import Policy
from mixoff.policies.registry import policy_name, policy_named
from mixoff.policies.residency import Residency
from mixoff.tiers.mover import Mover
from mixoff.tiers.record import RecordLayout
from mixoff.trace import Recorder, Trace


class ExpertCache:
    """Keeps some of each layer's experts on the device and fetches the others when needed.

    Parameters
    ----------
    mover
        Moves records between the device and the tiers below it.
    layouts
        ``layouts[layer][expert]``: where a record's tensors lie in it.
    slots_per_layer
        How many experts of a layer are resident; with 0, none stays after its use.
    policy
        Chooses which resident is evicted: a name in `mixoff.policies.POLICIES` or a `Policy`.
    staging
        How many buffers belong to no layer; misses and guesses are copied into them.
    device
        Where slots lie.
    miss
        Which misses are computed in host memory: "fetch" (none), "compute" or "auto", as in
        `mixoff.OffloadConfig`. Where the device computes in host memory itself, none is.

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
        self.provenance: dict[str, Any] = {}  # facts of the model and the run, for recordings
        self._mover = mover
        self._observers = Observers()
        residency = [
            Residency(self.num_experts, slots_per_layer, self.policy, layer)
            for layer in range(len(layouts))
        ]
        self._state = CacheState(mover, residency, staging, self._observers)
        self._server = DemandServer(self._state, layouts, MissChooser(miss))
        try:
            for layer in range(self.num_layers):
                self._server.load(layer)
        except BaseException:
            self.close()
            raise

    @property
    def num_layers(self) -> int:
        """How many layers have experts."""
        return len(self._state.residency)

    @property
    def slots_per_layer(self) -> int:
        """How many experts of a layer are resident."""
        return self._state.residency[0].num_slots

    def acquire(
        self,
        layer: int,
        needed: Iterable[int],
        *,
        tokens: int = 1,
        chosen_by: Mapping[int, int] | None = None,
    ) -> ExpertStream:
        """Begin to fetch a layer's misses, and return an iterator over all experts that it needs.

        Each needed expert is yielded once: residents first, then misses as they arrive. An expert
        is valid until the next one is requested, so that a layer may need more experts than it has
        slots. A demand that is interrupted by another one goes on, but its misses fill no more
        slots. Experts in the stream's `computed` are yielded as they lie in host memory.

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
        demand = self._server.begin(layer, needed, tokens, chosen_by)
        return ExpertStream(demand, self._server.serve(demand))

    def prefetch(self, layer: int, experts: Iterable[int], *, layers_ahead: int = 1) -> None:
        """Begin to fetch experts that a layer may need soon, the likeliest first.

        Experts that are on the device already are skipped; once no buffer is left, the others are
        not fetched. No resident is evicted for a guess, and hits and misses stay the same, unless
        misses are computed in host memory: one whose guess is complete gets a slot instead.

        Parameters
        ----------
        layers_ahead
            How far the layer is ahead of the one in which it was guessed, 1 or more.
        """
        for expert in experts:
            key = (layer, expert)
            if self._state.is_on_device(key):
                continue
            if not self._state.staging.guess(key, layers_ahead):
                return

    @contextmanager
    def record(self) -> Iterator[Trace]:
        """Record what happens inside the ``with`` block; the trace it yields is filled at its end.

        Several recordings may run at once. The device is never made to wait.
        """
        trace, recorder = Trace(), Recorder()
        for layer, residency in enumerate(self._state.residency):
            recorder.snapshot(snapshot_of(layer, residency, "start"))
        self._observers.attach(recorder)
        try:
            yield trace
        finally:
            self._observers.detach(recorder)
            for guess in self._state.staging.open_guesses():
                recorder.guess(guess)
            recorder.finish(provenance=self._provenance(), into=trace)

    def reserved_threads(self) -> int:
        """Return how many of the CPU's threads kernels should leave to transfers now."""
        return self._mover.reserved_threads

    def residents(self, layer: int) -> frozenset[int]:
        """Return the experts that a layer has on the device now."""
        return frozenset(self._state.slots[layer])

    def stats(self) -> CacheStats:
        """Return counts of hits, misses, bytes and waiting since the cache was made."""
        return self._server.stats()

    def resize(self, slots_per_layer: int) -> None:
        """Change how many experts of a layer are resident, without reloading anything else.

        Raises
        ------
        ConfigError
            If it isn't 0 to the number of experts.
        MixoffError
            If the cache was closed.
        """
        self._state.check_open()
        self._check_slots(slots_per_layer)
        self._state.resize(slots_per_layer)

    def close(self) -> None:
        """Release slots, host memory, files and threads; nothing can be acquired afterwards."""
        self._state.close()

    def __repr__(self) -> str:
        """Return slots, policy, device and hit rate."""
        rate = self.stats().hit_rate
        use = "no demand yet" if math.isnan(rate) else f"hit rate {rate:.1%}"
        closed = ", closed" if self._state.is_closed else ""
        return (
            f"ExpertCache({self.slots_per_layer} of {self.num_experts} experts in each of "
            f"{self.num_layers} layers, {policy_name(self.policy)}, {self.device}, {use}{closed})"
        )

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
                f"so give 0 (no expert stays) to {self.num_experts}."
            )

    def _provenance(self) -> dict[str, Any]:
        return (
            self.provenance
            | self._mover.facts()
            | {
                "num_experts": self.num_experts,
                "num_layers": self.num_layers,
                "record_nbytes": [self._mover.nbytes((n, 0)) for n in range(self.num_layers)],
                "policy": policy_name(self.policy),
                "slots_per_layer": self.slots_per_layer,
                "staging": self._state.num_staging,
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
