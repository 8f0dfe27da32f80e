"""Policies that keep queues in a memory, as a user may write them: CLOCK, SIEVE and S3-FIFO.

A queue is an array [..., E] of order numbers, OUT for what isn't in it; the lowest is the oldest.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixoff.policies import Memory, Policy, Usage

Array = NDArray[Any]

OUT = -1
LAST = 2**50  # more than any order number; their sum is exact in float64


class Queue(Memory):
    """The residents in the order of their entry, and how often each was hit since."""

    most_hits = 1  # that are counted

    def __init__(self, resident: Array) -> None:
        numbers = np.arange(resident.shape[-1])
        self.order = np.where(resident, numbers, OUT)
        self.hits = np.zeros(resident.shape, np.int64)
        self.end = len(numbers)  # an order number after all others

    @property
    def rank(self) -> Array:
        return self.hits * LAST + self.order

    def demanded(self, hits: Array, misses: Array) -> None:
        self.hits = np.minimum(self.hits + hits, self.most_hits)

    def evicted(self, victims: Array, candidates: Array) -> None:
        self.order[victims] = OUT

    def admitted(self, newcomers: Array) -> None:
        self.order[newcomers] = self.end
        self.hits[newcomers] = 0
        self.end += 1

    def move_to_end(self, moved: Array, key: Array) -> None:
        """Make experts the newest, in the order of a key."""
        self.order = np.where(moved, self.end + key.argsort(axis=-1).argsort(axis=-1), self.order)
        self.end += moved.shape[-1]


def of_victim(victims: Array, numbers: Array) -> Array:
    """Return each layer's number of its victim, [..., 1]; 0 where there is none."""
    return (victims * numbers).sum(axis=-1, keepdims=True)


class Clock(Policy):
    """Evict the oldest that wasn't hit; a hit moves to the newest end, once (Corbato 1968)."""

    def start(self, resident: Array, slots: Array) -> Memory:
        return ClockMemory(resident)

    def scores(self, seen: Usage) -> Array:
        return seen.memory.rank


class ClockMemory(Queue):
    def evicted(self, victims: Array, candidates: Array) -> None:
        hit, older = of_victim(victims, self.hits), self.order < of_victim(victims, self.order)
        passed = candidates & (self.hits > 0) & (older | (hit > 0))
        self.hits[passed] = 0
        self.move_to_end(passed, self.order)
        super().evicted(victims, candidates)


class Sieve(Policy):
    """Move a hand over the queue, and evict the first that wasn't hit (Zhang et al., NSDI 2024)."""

    def start(self, resident: Array, slots: Array) -> Memory:
        return SieveMemory(resident)

    def scores(self, seen: Usage) -> Array:
        return seen.memory.rank


class SieveMemory(Queue):
    def __init__(self, resident: Array) -> None:
        super().__init__(resident)
        self.hand = np.zeros((*resident.shape[:-1], 1), np.int64)  # an order number

    @property
    def distance(self) -> Array:
        return np.where(self.order < self.hand, self.order + self.end, self.order)

    @property
    def rank(self) -> Array:
        return self.hits * LAST + self.distance

    def evicted(self, victims: Array, candidates: Array) -> None:
        nearer = self.distance < of_victim(victims, self.distance)
        passed = candidates & (nearer | (of_victim(victims, self.hits) > 0))
        self.hits[passed] = 0
        place = of_victim(victims, self.order)
        is_newest = ~(self.order > place).any(axis=-1, keepdims=True)
        moved = victims.any(axis=-1, keepdims=True)
        self.hand = np.where(moved, np.where(is_newest, 0, place + 1), self.hand)
        super().evicted(victims, candidates)


class S3FIFO(Policy):
    """Evict from a small queue what wasn't hit twice, else from the main one (Yang, SOSP 2023)."""

    def start(self, resident: Array, slots: Array) -> Memory:
        return S3FIFOMemory(resident, slots)

    def scores(self, seen: Usage) -> Array:
        return np.where(seen.memory.plan()[0], -1, seen.memory.order)


class S3FIFOMemory(Queue):
    most_hits = 3

    def __init__(self, resident: Array, slots: Array) -> None:
        super().__init__(resident)
        self.slots = slots
        self.needed = np.zeros(resident.shape, bool)
        newest = np.arange(resident.shape[-1]) >= resident.shape[-1] - self.small
        self.is_main = resident & ~newest
        self.gone = np.full(resident.shape, OUT)  # evicted from small, by order number

    @property
    def small(self) -> Array:
        """How many experts may be in the small queue, [..., 1]."""
        return np.maximum(1, self.slots // 10)

    def demanded(self, hits: Array, misses: Array) -> None:
        super().demanded(hits, misses)
        self.needed = hits | misses

    def plan(self) -> tuple[Array, Array, Array]:
        """Return which expert is evicted next, what moves to main before, and whether main's."""
        resident = self.order != OUT
        outside = resident & ~self.needed
        candidates = np.where(outside.any(axis=-1, keepdims=True), outside, resident)
        in_small, in_main = resident & ~self.is_main, resident & self.is_main
        is_long = in_small.sum(axis=-1, keepdims=True) >= self.small
        own = candidates & in_small & is_long
        cold = first(own & (self.hits < 2), self.order)
        moved = own & (self.hits >= 2) & (self.order < oldest(cold, self.order))
        room = self.slots - self.small - in_main.sum(axis=-1, keepdims=True)
        number = count_older(moved, self.order)
        overfull = moved.sum(axis=-1, keepdims=True) > room
        moved &= number <= room
        main = (candidates & in_main) | moved
        uses = np.where(moved, 0, self.hits)
        order = np.where(moved, self.order + self.end, self.order)
        of_main = first(main, uses * LAST + order)
        of_small = first(candidates & in_small, self.order)
        from_small = cold & ~overfull
        others = np.where(main.any(axis=-1, keepdims=True), of_main, of_small)
        victim = np.where(from_small.any(axis=-1, keepdims=True), from_small, others)
        return victim, moved, main & others.any(axis=-1, keepdims=True)

    def evicted(self, victims: Array, candidates: Array) -> None:
        planned, moved, main = self.plan()
        as_planned = (planned == victims).all(axis=-1, keepdims=True)  # not if corrected
        moved = moved & as_planned
        self.hits[moved] = 0
        self.is_main |= moved
        self.move_to_end(moved, self.order)
        main = main & as_planned & (victims & self.is_main).any(axis=-1, keepdims=True)
        rounds = of_victim(victims, self.hits)
        before = main & (self.order < of_victim(victims, self.order))
        self.hits = np.where(main, self.hits - rounds - before, self.hits)
        self.move_to_end(before | (main & (rounds > 0)), self.order + before * LAST)
        self.gone = np.where(victims & ~self.is_main, self.end, self.gone)
        self.end += 1
        self.forget()
        super().evicted(victims, candidates)

    def forget(self) -> None:
        """Remember as many as main may hold."""
        newer = (self.gone[..., None, :] > self.gone[..., :, None]).sum(axis=-1)
        self.gone[newer >= self.slots - self.small] = OUT

    def admitted(self, newcomers: Array) -> None:
        super().admitted(newcomers)
        self.is_main = np.where(newcomers, self.gone != OUT, self.is_main)
        self.gone[newcomers] = OUT


def first(chosen: Array, key: Array) -> Array:
    """Return a mask of the chosen expert with the lowest key, in each layer that has one."""
    return chosen & (key == oldest(chosen, key))


def oldest(chosen: Array, key: Array) -> Array:
    return np.where(chosen, key, 10 * LAST).min(axis=-1, keepdims=True)


def count_older(chosen: Array, order: Array) -> Array:
    """Return how many of the chosen are older than each expert."""
    return (chosen[..., None, :] & (order[..., None, :] < order[..., :, None])).sum(axis=-1)
