"""Policies that don't depend on use: random victims, and a fixed set of residents."""

import numpy as np

from mixoff.policies.base import Policy
from mixoff.policies.usage import Array, Usage


class Random(Policy):
    """Evict experts at random; the same seed evicts the same ones, live and in a replay."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scores(self, seen: Usage) -> Array:
        """Return a hash of seed, layer, demand and expert (SplitMix64's finalizer)."""
        experts = np.arange(seen.last_used.shape[-1], dtype=np.uint64)
        key = np.uint64(self.seed * 0x9E3779B97F4A7C15 % 2**64)
        state = (seen.clock.astype(np.uint64) << np.uint64(32)) + experts  # [..., E]
        state = (state ^ key) + (seen.layer.astype(np.uint64) << np.uint64(20))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        hashed: Array = (state ^ (state >> np.uint64(31))) >> np.uint64(11)
        return hashed  # [..., E] of 53 bits: exact as a float


class Static(Policy):
    """Keep fixed experts in the slots; all others pass by without one.

    Parameters
    ----------
    worth
        [L, E]: in each layer the experts with the highest worth stay, such as those that were used
        most in a recording. By default those with the highest numbers, the first residents.
    """

    bypass = True

    def __init__(self, worth: Array | None = None) -> None:
        self.worth = worth

    def scores(self, seen: Usage) -> Array:
        """Return the worth of each expert."""
        experts = seen.last_used.shape[-1]
        if self.worth is None:
            return np.arange(experts)
        return np.asarray(self.worth)[seen.layer[..., 0]]  # [..., E]
