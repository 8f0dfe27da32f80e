"""Policies that use future demands: bounds for replays, not for a live cache."""

from mixoff.errors import ConfigError
from mixoff.policies.base import Policy
from mixoff.policies.usage import Array, Usage


class Belady(Policy):
    """Evict the expert whose next use is the latest: MIN, for caches that must admit misses.

    Where no demand is larger than the slots, no such cache hits more: Belady (1966), "A study of
    replacement algorithms for a virtual-storage computer".
    """

    def scores(self, seen: Usage) -> Array:
        """Return a score that is the lower, the later the next use.

        Raises
        ------
        ConfigError
            In a live cache.
        """
        if seen.next_use is None:
            raise ConfigError(
                "policy 'belady' needs future demands, which only a replay has: record a trace and "
                "give it to mixoff.sweep, or run with another policy."
            )
        return -seen.next_use  # [..., E]


class BeladyBypass(Belady):
    """MIN with bypass: keep the experts whose next use is the earliest. No cache hits more."""

    bypass = True
