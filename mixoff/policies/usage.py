"""What was seen of each expert: when it was used, how often. Knows nothing of slots or policies."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


NEVER = -1  # the stamp of what never happened


@dataclass
class Usage:
    """What was seen of experts; the last axis of every array is the experts.

    A live cache holds one layer's [E]; a replay holds all layers' and all cache sizes' at once, in
    arrays that broadcast together. Stamps order events of a layer, within a demand, too: hits come
    before misses, and each part ascends.
    """

    last_used: Array  # [..., E] stamp of the last demand, NEVER if there was none
    entered: Array  # [..., E] stamp of the last miss, which brought the expert in
    count: Array  # [..., E] demands so far
    clock: Array  # [..., 1] demands of the layer so far, the present one included
    layer: Array  # [..., 1] number of the layer
    next_use: Array | None = None  # [..., E] grows with how late the next demand is; in replays

    @classmethod
    def unseen(cls, num_experts: int, layer: int = 0) -> "Usage":
        """Return the usage of a layer that nothing was asked of yet."""
        return cls(
            last_used=np.full(num_experts, NEVER, np.int64),
            entered=np.full(num_experts, NEVER, np.int64),
            count=np.zeros(num_experts, np.int64),
            clock=np.zeros(1, np.int64),
            layer=np.array([layer]),
        )

    @property
    def now(self) -> Array:
        """[..., 1] a stamp later than all that were given so far."""
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

    def touch_residents(self, experts: Iterable[int]) -> None:
        """Note a demand of one layer that none missed, as `touch` does, in fewer steps."""
        self.clock += 1
        first = int(self.clock[0]) * (2 * len(self.last_used))
        for expert in experts:
            self.last_used[expert] = first + expert
            self.count[expert] += 1
