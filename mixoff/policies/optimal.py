"""Policies that know the future: bounds for replays, not for a live cache."""

from mixoff.errors import ConfigError
from mixoff.policies.base import Policy
from mixoff.policies.usage import Array, Usage


class Belady(Policy):
    """Evict the expert that is needed again last: the best a cache can do that must admit (MIN).

    Belady (1966), "A study of replacement algorithms for a virtual-storage computer". It knows the
    future, so it serves replays only.
    """

    def scores(self, seen: Usage) -> Array:
        """Return how near each expert's next use is.

        Raises
        ------
        ConfigError
            In a live cache, which can't know.
        """
        if seen.next_use is None:
            raise ConfigError(
                "policy 'belady' needs to know the future, which only a replay does: record a "
                "trace and give it to mixoff.sweep, or run with another policy."
            )
        return -seen.next_use  # [..., E]


class BeladyBypass(Belady):
    """Keep what is needed again soonest, a missed expert only if it is: MIN with bypass."""

    bypass = True
