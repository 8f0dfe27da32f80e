"""Counts of what an expert cache did. Knows numbers; nothing of what they were counted from."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from mixoff.units import format_nbytes


@dataclass(frozen=True, repr=False)
class CacheStats:
    """What a cache did: one entry per layer, from the first layer to the last.

    A demand is the set of experts that a layer needed in one step, so an expert counts once in it,
    however many tokens chose it. What was loaded before the first demand isn't counted.
    ``later - earlier`` is what happened between.

    Attributes
    ----------
    hits_per_layer, misses_per_layer
        Demanded experts that were in a slot, and that were not.
    bytes_moved
        Bytes copied for misses, at the demand or ahead of it.
    bytes_wasted
        Bytes copied ahead of time for experts that were not demanded.
    prefetch_used, prefetch_late, prefetch_wasted
        Experts copied ahead of time: complete when demanded, in flight then, or not demanded.
    wait_ns
        How long compute waited for misses, as the host measured it, in nanoseconds.
    computed
        Misses that were computed in host memory, without a copy.
    computed_ns
        How long that took, as the host measured it, in nanoseconds.
    """

    hits_per_layer: tuple[int, ...]
    misses_per_layer: tuple[int, ...]
    bytes_moved: int = 0
    bytes_wasted: int = 0
    prefetch_used: int = 0
    prefetch_late: int = 0
    prefetch_wasted: int = 0
    wait_ns: int = field(default=0, compare=False)  # a time is never the same twice
    computed: int = 0
    computed_ns: int = field(default=0, compare=False)

    @property
    def hits(self) -> int:
        """Demanded experts that were in a slot."""
        return sum(self.hits_per_layer)

    @property
    def misses(self) -> int:
        """Demanded experts that had to be copied, or computed in host memory."""
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

    def __repr__(self) -> str:
        """Return the sums over layers; of computing and prefetching only what happened."""
        rate = "unknown" if math.isnan(self.hit_rate) else f"{self.hit_rate:.1%}"
        parts = [
            f"{self.hits} hits",
            f"{self.misses} misses",
            f"hit rate {rate}",
            f"{format_nbytes(self.bytes_moved)} moved",
            f"waited {self.wait_ns / 1e9:.3f} s",
        ]
        if self.computed:
            parts.append(f"{self.computed} computed in {self.computed_ns / 1e9:.3f} s")
        outcomes = self.prefetch_used, self.prefetch_late, self.prefetch_wasted
        if any(outcomes):
            used, late, wasted = outcomes
            parts.append(f"prefetched {used} used, {late} late, {wasted} wasted")
        return f"CacheStats({', '.join(parts)})"

    def __sub__(self, earlier: "CacheStats") -> "CacheStats":
        return CacheStats(
            *(_minus(getattr(self, f.name), getattr(earlier, f.name)) for f in fields(self))
        )


def _minus(later: Any, earlier: Any) -> Any:
    if isinstance(later, tuple):
        return tuple(a - b for a, b in zip(later, earlier, strict=True))
    return later - earlier
