"""Which resident expert leaves first. Knows how experts were used; nothing of slots or bytes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixoff.errors import ConfigError

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


class Policy(ABC):
    """Ranks experts for eviction; a subclass is one small class with one method."""

    bypass = False  # whether a missed expert may be the one that leaves, before it got a slot

    @abstractmethod
    def scores(self, seen: Usage) -> Array:
        """Return a score per expert, [..., E], of the demand that `seen` ends with.

        The lowest leaves first, and of equal ones the expert with the lowest number.
        """


class LRU(Policy):
    """Evict the least recently used expert (the report, section 3.1)."""

    def scores(self, seen: Usage) -> Array:
        """Return the stamp of each expert's last use."""
        return seen.last_used  # [..., E]


class LFU(Policy):
    """Evict the least frequently used expert, of several the least recently used one."""

    def scores(self, seen: Usage) -> Array:
        """Return each expert's demands, and how recent the last was as a fraction of one."""
        return seen.count + seen.last_used / seen.now  # [..., E]


class FIFO(Policy):
    """Evict the expert that has been in a slot for the longest time."""

    def scores(self, seen: Usage) -> Array:
        """Return the stamp of each expert's last miss."""
        return seen.entered  # [..., E]


class Random(Policy):
    """Evict any expert; the same seed evicts the same ones, live and in a replay."""

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
    """Keep fixed experts in the slots and let all others pass through without one.

    Parameters
    ----------
    worth
        [L, E]: of each layer the experts with the highest worth stay, such as those that were used
        most in a recording. By default those with the highest numbers, which start inside.
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


POLICIES: dict[str, Callable[[], Policy]] = {
    "lru": LRU,
    "lfu": LFU,
    "fifo": FIFO,
    "random": Random,
    "static": Static,
    "belady": Belady,
    "belady-bypass": BeladyBypass,
}
LIVE_POLICIES = tuple(name for name in POLICIES if not name.startswith("belady"))


def policy_named(policy: "str | Policy") -> Policy:
    """Return the policy of that name, or the given policy itself.

    Raises
    ------
    ConfigError
        If there is no policy of that name.
    """
    if isinstance(policy, Policy):
        return policy
    if policy not in tuple(POLICIES):
        raise ConfigError(f"policy={policy!r}: give one of {', '.join(POLICIES)}, or a Policy.")
    return POLICIES[policy]()


def policy_name(policy: "str | Policy") -> str:
    """Return what a policy is called in traces and tables.

    Its name in POLICIES, or its class's in lower case, followed by the settings that aren't the
    default: "random(seed=3)", and for arrays and the like only which they are: "static(worth)".
    """
    if not isinstance(policy, Policy):
        return policy_name(policy_named(policy))
    names = [name for name, make in POLICIES.items() if make is type(policy)]
    usual = vars(POLICIES[names[0]]()) if names else {}
    settings = [
        f"{name}={value}" if isinstance(value, int | float | str) else name
        for name, value in vars(policy).items()
        if value is not usual.get(name)
    ]
    name = names[0] if names else type(policy).__name__.lower()
    return f"{name}({', '.join(settings)})" if settings else name
