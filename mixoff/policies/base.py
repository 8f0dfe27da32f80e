"""Which resident expert leaves first. Knows how experts were used; nothing of slots or bytes."""

from abc import ABC, abstractmethod

from mixoff.policies.usage import Array, Usage


class Policy(ABC):
    """Ranks experts for eviction; a subclass is one small class with one method."""

    bypass = False  # whether a missed expert may be the one that leaves, before it got a slot

    @abstractmethod
    def scores(self, seen: Usage) -> Array:
        """Return a score per expert, [..., E], of the demand that `seen` ends with.

        The lowest leaves first, and of equal ones the expert with the lowest number.
        """
