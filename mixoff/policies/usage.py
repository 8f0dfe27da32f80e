"""How each expert was used: when, how often, how lately. Knows nothing of slots or policies."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mixoff.policies.memory import Memory

Array = NDArray[Any]


NEVER = -1  # the stamp of what never happened

# At each demand recent = recent * _DECAY + (1 if needed else 0), in float64: the CRF of LRFU (Lee
# et al. 2001) with lambda 0.1. An array, by which numpy multiplies in half the time.
_DECAY = np.array(0.5**0.1)


@dataclass
class Usage:
    """How experts were used so far; the last axis of every array is the experts.

    A live cache holds one layer's [E]; a replay holds all layers' and all cache sizes' at once, in
    arrays that broadcast together. Stamps order events of a layer, also within a demand: hits are
    earlier than misses, and both ascend.
    """

    last_used: Array  # [..., E] stamp of the last demand, NEVER if there was none
    entered: Array  # [..., E] stamp of the last miss that was let into a slot
    count: Array  # [..., E] demands so far
    recent: Array  # [..., E] the same, but each demand counts half as much ten demands later
    clock: Array  # [..., 1] demands of the layer so far, the present one included
    layer: Array  # [..., 1] number of the layer
    next_use: Array | None = None  # [..., E] the later the next demand, the higher; in replays
    memory: "Memory | None" = None  # what the policy's own `start` returned

    @classmethod
    def unseen(cls, num_experts: int, layer: int = 0) -> "Usage":
        """Return the usage of a layer that had no demand yet."""
        return cls(
            last_used=np.full(num_experts, NEVER, np.int64),
            entered=np.full(num_experts, NEVER, np.int64),
            count=np.zeros(num_experts, np.int64),
            recent=np.zeros(num_experts),
            clock=np.zeros(1, np.int64),
            layer=np.array([layer]),
        )

    @property
    def age(self) -> Array:
        """[..., E] demands of the layer since the last one that needed the expert.

        0 if the present demand needs it; of an expert that was never needed ``clock + 1``, which is
        more than any other's.
        """
        last = self.last_used // (2 * self.last_used.shape[-1])  # its demand, counted from 1
        # The start's stamps belong to no demand: their quotient is 0, and that of NEVER is -1.
        age: Array = self.clock - np.where(last > 0, last, -1)
        return age

    @property
    def now(self) -> Array:
        """[..., 1] a stamp later than all so far."""
        now: Array = (self.clock + 1) * (2 * self.last_used.shape[-1])
        return now

    def touch(self, needed: Array, missed: Array) -> None:
        """Note a demand: which experts were needed, and which of them missed, masks [..., E]."""
        experts = self.last_used.shape[-1]
        self.clock += 1
        hit_stamps = self.clock * (2 * experts) + np.arange(experts)
        miss_stamps = hit_stamps + experts
        np.copyto(self.last_used, hit_stamps, where=needed)
        np.copyto(self.last_used, miss_stamps, where=missed)
        np.copyto(self.entered, miss_stamps, where=missed)
        self.count += needed
        self.recent *= _DECAY
        self.recent += needed

    def touch_residents(self, experts: Iterable[int]) -> None:
        """Note a demand of one layer without misses, as `touch` does, in fewer steps."""
        self.clock[0] = clock = int(self.clock[0]) + 1
        self.recent *= _DECAY
        first = clock * (2 * len(self.last_used))
        for expert in experts:
            self.last_used[expert] = first + expert
            self.count[expert] += 1
            self.recent[expert] += 1
