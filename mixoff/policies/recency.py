"""Policies that rank experts by when they were used or came in."""

from mixoff.policies.base import Policy
from mixoff.policies.usage import Array, Usage


class LRU(Policy):
    """Evict the least recently used expert (the report, section 3.1)."""

    def scores(self, seen: Usage) -> Array:
        """Return the stamp of each expert's last use."""
        return seen.last_used  # [..., E]


class FIFO(Policy):
    """Evict the expert that has been in a slot for the longest time."""

    def scores(self, seen: Usage) -> Array:
        """Return the stamp of each expert's last miss."""
        return seen.entered  # [..., E]
