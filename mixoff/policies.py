"""Which resident expert leaves first. Knows how experts were used; nothing of slots or bytes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class Usage:
    """What a cache has seen of a layer's experts; the last axis of every array is the experts."""

    last_used: Array  # [..., E] time of the last demand, in touches; -1 if never
    count: Array  # [..., E] demands so far

    @classmethod
    def unseen(cls, num_experts: int) -> "Usage":
        """Return the usage of a layer that nothing was asked of yet."""
        return cls(np.full(num_experts, -1, np.int64), np.zeros(num_experts, np.int64))


class Policy(ABC):
    """Ranks experts for eviction; a subclass is one small class with one method."""

    @abstractmethod
    def scores(self, seen: Usage) -> Array:
        """Return a score per expert, of the shape of `seen`'s arrays; the lowest leaves first."""


class LRU(Policy):
    """Evict the least recently used expert (the report, section 3.1)."""

    def scores(self, seen: Usage) -> Array:
        """Return the time of each expert's last use."""
        return seen.last_used  # [..., E]


POLICIES: dict[str, type[Policy]] = {"lru": LRU}


def policy_named(policy: "str | Policy") -> Policy:
    """Return the policy of that name, or the given policy itself."""
    return policy if isinstance(policy, Policy) else POLICIES[policy]()
