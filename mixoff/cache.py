"""The expert cache: slots on the device, filled from a store, counted. Knows nothing of models."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from mixoff.config import OffloadConfig
from mixoff.errors import MixoffError
from mixoff.policies import policy_named
from mixoff.quantization import PackedMatrix
from mixoff.records import RecordLayout, aligned_buffer
from mixoff.residency import Residency
from mixoff.store import RecordStore

Expert = Mapping[str, PackedMatrix]


@dataclass(frozen=True)
class CacheStats:
    """What a cache did: one entry per layer, from the first layer to the last.

    A demand is the set of experts that a layer needed in one step, so an expert counts once in it,
    however many tokens chose it. `bytes_moved` are those copied into slots to serve misses; what
    was loaded before the first demand is not in it. ``later - earlier`` is what happened between.
    """

    hits_per_layer: tuple[int, ...]
    misses_per_layer: tuple[int, ...]
    bytes_moved: int

    @property
    def hits(self) -> int:
        """Demanded experts found in a slot."""
        return sum(self.hits_per_layer)

    @property
    def misses(self) -> int:
        """Demanded experts that had to be copied into a slot."""
        return sum(self.misses_per_layer)

    @property
    def hit_rate(self) -> float:
        """Hits over demanded experts, 0 to 1; NaN if nothing was demanded."""
        demanded = self.hits + self.misses
        return self.hits / demanded if demanded else float("nan")

    @property
    def hit_rate_per_layer(self) -> tuple[float, ...]:
        """The hit rate of each layer; NaN where nothing was demanded."""
        return tuple(
            hits / (hits + misses) if hits + misses else float("nan")
            for hits, misses in zip(self.hits_per_layer, self.misses_per_layer, strict=True)
        )

    def __sub__(self, earlier: "CacheStats") -> "CacheStats":
        return CacheStats(
            tuple(a - b for a, b in zip(self.hits_per_layer, earlier.hits_per_layer, strict=True)),
            tuple(
                a - b for a, b in zip(self.misses_per_layer, earlier.misses_per_layer, strict=True)
            ),
            self.bytes_moved - earlier.bytes_moved,
        )


class _Slot:
    """A device buffer for one record of a layer, and its tensors as views."""

    expert: Expert

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.buffer = aligned_buffer(nbytes, device)
        self._layout: RecordLayout | None = None

    def show(self, layout: RecordLayout) -> None:
        """Let `expert` be what the buffer holds, a record of this layout."""
        if self._layout is not layout:
            self._layout, self.expert = layout, layout.tensors(self.buffer)


class ExpertCache:
    """Keeps some of each layer's experts on the device and fetches the others when needed.

    Parameters
    ----------
    store
        Holds every record.
    layouts
        The layout of each record, ``layouts[layer][expert]``.
    num_experts
        Experts of a layer.
    offload
        How many start outside, and who leaves first.
    device
        Where slots lie. On ``cpu`` they are a budget of host memory and the disk is the far tier.

    Raises
    ------
    ConfigError
        If no slot would be left.
    CheckpointError
        If a record that starts on the device can't be read.
    """

    def __init__(
        self,
        store: RecordStore,
        layouts: Sequence[Sequence[RecordLayout]],
        *,
        num_experts: int,
        offload: OffloadConfig,
        device: torch.device,
    ) -> None:
        self.num_experts = num_experts
        self.slots_per_layer = offload.slots_per_layer(num_experts)
        self.device = device
        self._store = store
        policy = policy_named(offload.policy)
        self._residency = [Residency(num_experts, self.slots_per_layer, policy) for _ in layouts]
        self._layouts = layouts
        largest = max(layout.stride for layer in layouts for layout in layer)
        self._slots = [
            [_Slot(largest, device) for _ in range(self.slots_per_layer)] for _ in layouts
        ]
        self._staging = None if device.type == "cpu" else aligned_buffer(largest)
        self._hits = [0] * len(layouts)
        self._misses = [0] * len(layouts)
        self._bytes_moved = 0
        for layer, residency in enumerate(self._residency):
            starters = range(num_experts - self.slots_per_layer, num_experts)
            residency.start_with(starters)
            for expert in starters:
                self._fetch(layer, expert, keep=False)  # host memory is for those outside

    def acquire(self, layer: int, needed: Iterable[int]) -> Iterator[tuple[int, Expert]]:
        """Yield each needed expert of a layer once: residents first, then misses as they come.

        An expert is valid until the next one is asked for, so that a layer may need more experts
        than it has slots.

        Raises
        ------
        CheckpointError
            If a record can't be read; the cache stays usable.
        MixoffError
            If the cache was closed.
        """
        if not self._slots:
            raise MixoffError("this expert cache was closed: build the model again.")
        residency, slots = self._residency[layer], self._slots[layer]
        hits, misses = residency.demand(needed)
        self._hits[layer] += len(hits)
        self._misses[layer] += len(misses)
        for expert in (demand := (*hits, *misses)):
            if expert not in residency:
                self._fetch(layer, expert, demand)
                self._bytes_moved += self._store.nbytes(layer, expert)
            yield expert, slots[residency.slot(expert)].expert

    def residents(self, layer: int) -> frozenset[int]:
        """Return the experts that a layer has on the device now."""
        return self._residency[layer].residents

    def stats(self) -> CacheStats:
        """Return hits, misses and bytes moved since the cache was made."""
        return CacheStats(tuple(self._hits), tuple(self._misses), self._bytes_moved)

    def close(self) -> None:
        """Give back slots, host memory and files; nothing can be acquired afterwards."""
        self._slots.clear()
        self._staging = None
        self._store.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise MixoffError(
            "an expert cache can't be copied, since its slots and files belong to one model: "
            "build the model again."
        )

    def __reduce__(self) -> NoReturn:
        raise MixoffError("an expert cache can't be pickled: build the model again.")

    def _fetch(
        self, layer: int, expert: int, demand: Sequence[int] = (), *, keep: bool = True
    ) -> None:
        residency = self._residency[layer]
        slot, _ = residency.vacate(demand)
        self._copy(layer, expert, self._slots[layer][slot].buffer, keep=keep)
        self._slots[layer][slot].show(self._layouts[layer][expert])
        residency.occupy(slot, expert)

    def _copy(self, layer: int, expert: int, buffer: Tensor, *, keep: bool) -> None:
        if self._staging is None:
            self._store.read(layer, expert, buffer, keep=keep)
        else:
            self._store.read(layer, expert, self._staging, keep=keep)
            buffer.copy_(self._staging[: buffer.numel()])


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
