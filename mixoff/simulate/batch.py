"""Simulated caches: many of them replay one recording side by side. Knows arrays; no tables.

All policies, sizes and layers take their n-th demands together, a round each, with the same `admit`
and `Usage` as a live cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixoff.policies.admission import Ranking, admit, replace_residents, shrink
from mixoff.policies.base import Policy, refuse_nan
from mixoff.policies.usage import Array, Usage
from mixoff.trace import Trace
from mixoff.trace.schema import Rows

# P policies, K sizes, L layers, E experts, T rounds, N demands, M needed experts in all


class Rounds:
    """A recording's demands in the order of a replay: round n has the n-th demand of each layer."""

    def __init__(self, trace: Trace) -> None:
        demands = trace.demands()
        self.layers, self.experts = trace.num_layers, trace.num_experts
        sizes = np.diff(demands.first)  # [N]
        number = np.repeat(_round_numbers(demands.layer, self.layers), sizes)  # [M]
        cell = np.repeat(demands.layer, sizes) * self.experts + demands.expert
        self.order = np.argsort(number, kind="stable")  # [M] places in the recording
        self.cell = cell[self.order]  # [M] where in [L, E] a needed expert is
        self.computed = demands.computed[self.order]  # [M] a miss that was computed in host memory
        self._number = number[self.order]
        self.count = int(self._number[-1]) + 1 if len(number) else 0  # T
        self._first = np.searchsorted(self._number, np.arange(self.count + 1))  # [T + 1]
        self.needed_per_layer = np.bincount(self.cell // self.experts, minlength=self.layers)

    def part(self, number: int) -> slice:
        """Return which needed experts belong to a round."""
        return slice(self._first[number], self._first[number + 1])

    @cached_property
    def next_use(self) -> tuple[Array, Array]:
        """The round of each expert's first demand, [L, E], and of the one after each, [M].

        A round past the last stands for never.
        """
        by_cell = np.argsort(self.cell, kind="stable")  # each expert's demands one after another
        cell, number = self.cell[by_cell], self._number[by_cell]
        starts = np.diff(cell, prepend=-1) != 0
        following = np.append(np.where(starts[1:], self.count, number[1:]), self.count)
        after = np.empty_like(number)
        after[by_cell] = following[: len(number)]
        first = np.full(self.layers * self.experts, self.count)
        first[cell[starts]] = number[starts]
        return first.reshape(self.layers, self.experts), after


def _round_numbers(layer: NDArray[np.int64], layers: int) -> NDArray[np.int64]:
    """Return for each demand, [N], how many of its layer came before."""
    demands = np.bincount(layer, minlength=layers)  # [L]
    begins = np.cumsum(demands) - demands  # where a layer begins when they are sorted
    numbers = np.empty_like(layer)
    by_layer = np.argsort(layer, kind="stable")
    numbers[by_layer] = np.arange(len(layer)) - np.repeat(begins, demands)
    return numbers


@dataclass
class BatchedCaches:
    """Caches that replay a recording side by side: a policy and a size each, all layers.

    Where there are several policies, none of them has a memory.
    """

    policies: Sequence[Policy]
    slots: Array  # [P, K, L]
    resident: Array  # [P, K, L, E]
    usage: Usage  # last_used and entered [P, K, L, E]; the rest, alike in all caches, [L, ...]

    def misses(self, rounds: Rounds, changes: Rows | None = None) -> Iterator[Array]:
        """Yield of each round which experts are needed and not resident, [P, K, L, E].

        Each row of `changes`, states of layers, is put in place before its round. With them the
        caches are the recorded one, and don't let in the misses that it computed in host memory.
        """
        first, after = rounds.next_use
        self.usage.next_use = next_use = first.copy()  # [L, E]
        needed, missed = np.zeros_like(next_use, bool), np.empty_like(self.resident)
        demanded = np.broadcast_to(needed, missed.shape)  # a view
        rankings = [self._ranking(place) for place in range(len(self.policies))]
        bypass = np.array([policy.bypass for policy in self.policies])[:, None, None]
        bypass = np.broadcast_to(bypass, self.slots.shape).reshape(-1)
        for number in range(rounds.count):
            for state in () if changes is None else changes[changes["position"] == number]:
                self._put(state, rankings)
            part = rounds.part(number)
            needed[...] = False
            needed.reshape(-1)[rounds.cell[part]] = True
            next_use.reshape(-1)[rounds.cell[part]] = after[part]
            np.greater(needed, self.resident, out=missed)
            entering = missed
            if changes is not None and rounds.computed[part].any():
                entering = missed.copy()
                cells = rounds.cell[part][rounds.computed[part]]
                entering.reshape(*missed.shape[:-2], -1)[..., cells] = False
            self.usage.touch(needed, entering)
            self._admit(demanded, entering, rankings, bypass)
            yield missed

    def _ranking(self, place: int) -> Ranking:
        """Return the ranking of one policy's caches, of views that change with all caches'."""
        usage = self.usage
        own = replace(usage, last_used=usage.last_used[place], entered=usage.entered[place])
        slots = self.slots[place][..., None]
        return Ranking(self.policies[place], own, self.resident[place], slots)

    def _admit(self, needed: Array, missed: Array, rankings: list[Ranking], bypass: Array) -> None:
        rows = (-1, needed.shape[-1])
        has_memory = rankings[0].has_memory
        if has_memory:
            rankings[0].demanded((needed & self.resident)[0], missed[0])
        for _ in admit(
            self.resident.reshape(rows),  # a view, in which it lets experts in
            needed.reshape(rows),
            missed.reshape(rows),
            scores=_scores(rankings, missed.shape).reshape(rows),
            slots=self.slots.reshape(-1),
            bypass=bypass,
            ranking=rankings[0] if has_memory else None,
        ):
            pass

    def _put(self, state: Any, rankings: list[Ranking]) -> None:
        """Put a layer's state in place; what that evicts and admits is what it was live."""
        layer, usage = state["layer"], self.usage
        self.slots[..., layer] = state["slots"]
        usage.last_used[..., layer, :] = state["last_used"]
        usage.entered[..., layer, :] = state["entered"]
        usage.count[layer] = state["count"]
        usage.clock[layer] = state["clock"]
        wanted = self.resident.copy()
        wanted[..., layer, :] = state["resident"]
        rows = (-1, wanted.shape[-1])
        if rankings[0].has_memory:
            for _ in shrink(self.resident.reshape(rows), self.slots.reshape(-1), rankings[0]):
                pass
        replace_residents(self.resident.reshape(rows), wanted.reshape(rows), rankings[0])


def _scores(rankings: list[Ranking], shape: tuple[int, ...]) -> Array:
    """Return the scores of all policies, [P, K, L, E]."""
    scores = np.empty(shape)
    for own, ranking in zip(scores, rankings, strict=True):
        own[...] = ranking.scores()
    if np.isnan(scores.min()):  # NaN if any of them is
        for own, ranking in zip(scores, rankings, strict=True):
            refuse_nan(ranking.policy, own)
    return scores
