"""Caches on paper: many of them go through one recording side by side. Knows arrays; no tables.

All policies, sizes and layers take their n-th demands together, a turn each, with the same `admit`
and `Usage` as a live cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixoff.policies.base import Policy
from mixoff.policies.residency import admit
from mixoff.policies.usage import Array, Usage
from mixoff.trace import Trace
from mixoff.trace.schema import Rows

# P policies, K sizes, L layers, E experts, T turns, N demands, M needed experts in all


class Rounds:
    """A recording's demands as a replay takes them: the n-th turn is every layer's n-th one."""

    def __init__(self, trace: Trace) -> None:
        demands = trace.demands()
        self.layers, self.experts = trace.num_layers, trace.num_experts
        sizes = np.diff(demands.first)  # [N]
        turn = np.repeat(_turns(demands.layer, self.layers), sizes)  # [M]
        cell = np.repeat(demands.layer, sizes) * self.experts + demands.expert
        self.order = np.argsort(turn, kind="stable")  # [M] places in the recording
        self.cell = cell[self.order]  # [M] where in [L, E] a needed expert is
        self.computed = demands.computed[self.order]  # [M] a miss, computed where it lay
        self._turn = turn[self.order]
        self.count = int(self._turn[-1]) + 1 if len(turn) else 0  # T
        self._first = np.searchsorted(self._turn, np.arange(self.count + 1))  # [T + 1]
        self.needed_per_layer = np.bincount(self.cell // self.experts, minlength=self.layers)

    def part(self, turn: int) -> slice:
        """Return which needed experts belong to a turn."""
        return slice(self._first[turn], self._first[turn + 1])

    @cached_property
    def next_use(self) -> tuple[Array, Array]:
        """The turn of each expert's first demand, [L, E], and of the one after each, [M].

        A turn past the last stands for never.
        """
        by_cell = np.argsort(self.cell, kind="stable")  # each expert's demands one after another
        cell, turn = self.cell[by_cell], self._turn[by_cell]
        starts = np.diff(cell, prepend=-1) != 0
        following = np.append(np.where(starts[1:], self.count, turn[1:]), self.count)[: len(turn)]
        after = np.empty_like(turn)
        after[by_cell] = following
        first = np.full(self.layers * self.experts, self.count)
        first[cell[starts]] = turn[starts]
        return first.reshape(self.layers, self.experts), after


def _turns(layer: NDArray[np.int64], layers: int) -> NDArray[np.int64]:
    """Return for each demand, [N], how many of its layer came before."""
    demands = np.bincount(layer, minlength=layers)  # [L]
    begins = np.cumsum(demands) - demands  # where a layer begins when they are sorted
    turns = np.empty_like(layer)
    turns[np.argsort(layer, kind="stable")] = np.arange(len(layer)) - np.repeat(begins, demands)
    return turns


@dataclass
class BatchedCaches:
    """Caches that go through a recording side by side: a policy and a size each, all layers."""

    policies: Sequence[Policy]
    slots: Array  # [P, K, L]
    resident: Array  # [P, K, L, E]
    usage: Usage  # last_used and entered [P, K, L, E]; the rest, alike in all caches, [L, ...]

    def misses(self, turns: Rounds, changes: Rows | None = None) -> Iterator[Array]:
        """Yield of each turn which experts are needed and not resident, [P, K, L, E].

        Before its turn each row of `changes`, states of layers, is put in place of what was. With
        them caches are the recorded one, and don't let in what it computed where it lay.
        """
        first, after = turns.next_use
        self.usage.next_use = next_use = first.copy()  # [L, E]
        needed, missed = np.zeros_like(next_use, bool), np.empty_like(self.resident)
        seen = [_seen_by(place, self.usage) for place in range(len(self.policies))]
        for turn in range(turns.count):
            for state in () if changes is None else changes[changes["position"] == turn]:
                self._put(state)
            part = turns.part(turn)
            needed[...] = False
            needed.reshape(-1)[turns.cell[part]] = True
            next_use.reshape(-1)[turns.cell[part]] = after[part]
            np.greater(needed, self.resident, out=missed)
            entering = missed
            if changes is not None and turns.computed[part].any():
                entering = missed.copy()
                cells = turns.cell[part][turns.computed[part]]
                entering.reshape(*missed.shape[:-2], -1)[..., cells] = False
            self.usage.touch(needed, entering)
            self._admit(needed, entering, seen)
            yield missed

    def _admit(self, needed: Array, missed: Array, seen: list[Usage]) -> None:
        rows = (-1, needed.shape[-1])
        scores = np.empty(missed.shape)
        for place, policy in enumerate(self.policies):
            scores[place] = policy.scores(seen[place])
        bypass = np.array([policy.bypass for policy in self.policies])[:, None, None]
        for _ in admit(
            self.resident.reshape(rows),  # a view, in which it lets experts in
            np.broadcast_to(needed, missed.shape).reshape(rows),
            missed.reshape(rows),
            scores=scores.reshape(rows),
            slots=self.slots.reshape(-1),
            bypass=np.broadcast_to(bypass, self.slots.shape).reshape(-1),
        ):
            pass

    def _put(self, state: Any) -> None:
        layer, usage = state["layer"], self.usage
        self.slots[..., layer] = state["slots"]
        self.resident[..., layer, :] = state["resident"]
        usage.last_used[..., layer, :] = state["last_used"]
        usage.entered[..., layer, :] = state["entered"]
        usage.count[layer] = state["count"]
        usage.clock[layer] = state["clock"]


def _seen_by(place: int, usage: Usage) -> Usage:
    """Return what one policy's caches see, as views: they change with what all see."""
    return replace(usage, last_used=usage.last_used[place], entered=usage.entered[place])
