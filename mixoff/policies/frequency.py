"""Policies that rank experts by how often they were used."""

from mixoff.policies.base import Policy
from mixoff.policies.usage import Array, Usage


class LFU(Policy):
    """Evict the least frequently used expert, of several the least recently used one."""

    def scores(self, seen: Usage) -> Array:
        """Return each expert's demands, and how recent the last was as a fraction of one."""
        return seen.count + seen.last_used / seen.now  # [..., E]
