"""Policies that rank experts by how often they were used."""

from mixoff.policies.base import Policy
from mixoff.policies.usage import Array, Usage


class LFU(Policy):
    """Evict the least frequently used expert, of equal ones the least recently used."""

    def scores(self, seen: Usage) -> Array:
        """Return the number of demands, plus the last one's stamp as a fraction below 1."""
        return seen.count + seen.last_used / seen.now  # [..., E]
