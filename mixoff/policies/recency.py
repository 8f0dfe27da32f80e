"""Policies that rank experts by the time of their last use or entry."""

from mixoff.policies.base import Policy
from mixoff.policies.usage import Array, Usage


class LRU(Policy):
    """Evict the least recently used expert (the report, section 3.1)."""

    def scores(self, seen: Usage) -> Array:
        """Return the stamp of each expert's last use."""
        return seen.last_used  # [..., E]


class FIFO(Policy):
    """Evict the expert that entered its slot first."""

    def scores(self, seen: Usage) -> Array:
        """Return the stamp of each expert's last miss."""
        return seen.entered  # [..., E]
