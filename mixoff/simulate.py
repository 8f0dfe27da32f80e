"""What other caches would have done with a recording. Knows demands, policies and slots; no times.

All policies, sizes and layers go through the recording at once, by each layer's n-th demand, with
the same `admit` and `Usage` as a live cache.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixoff.errors import ConfigError, TraceError
from mixoff.policies import NEVER, POLICIES, Array, Policy, Usage, policy_name, policy_named
from mixoff.residency import admit
from mixoff.trace import Trace
from mixoff.trace.tables import START, Rows, usage_of

if TYPE_CHECKING:
    import pandas as pd

# P policies, K sizes, L layers, E experts, T demands of the layer with the most, M needed experts

FLOOR = "floor"  # what memoryless routing hits in any cache: slots / experts
_COLUMNS = ("policy", "slots", "layer", "hits", "misses", "hit_rate", "bytes")


@dataclass(frozen=True)
class Replay:
    """What one cache would have done with a recording.

    Parameters
    ----------
    hit
        [M] whether each needed expert was resident, in the order of `Trace.demands().expert`.
    hits_per_layer, misses_per_layer
        How many were and weren't, for each layer.
    """

    hit: NDArray[np.bool_]
    hits_per_layer: tuple[int, ...]
    misses_per_layer: tuple[int, ...]

    @property
    def hit_rate(self) -> float:
        """Hits over needed experts, 0 to 1; NaN if none was needed."""
        return float(self.hit.mean()) if self.hit.size else float("nan")


class _Stream:
    """A recording's demands, in the order in which a replay takes them: all layers' n-th ones."""

    def __init__(self, trace: Trace) -> None:
        demands = trace.demands()
        self.layers, self.experts = trace.num_layers, trace.num_experts
        sizes = np.diff(demands.first)  # [N]
        turn = np.repeat(_turns(demands.layer, self.layers), sizes)  # [M]
        cell = np.repeat(demands.layer, sizes) * self.experts + demands.expert
        self.order = np.argsort(turn, kind="stable")  # [M] places in the recording
        self.cell = cell[self.order]  # [M] where in [L, E] a needed expert is
        self._turn = turn[self.order]
        self.turns = int(self._turn[-1]) + 1 if len(turn) else 0  # T
        self._first = np.searchsorted(self._turn, np.arange(self.turns + 1))  # [T + 1]
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
        following = np.append(np.where(starts[1:], self.turns, turn[1:]), self.turns)[: len(turn)]
        after = np.empty_like(turn)
        after[by_cell] = following
        first = np.full(self.layers * self.experts, self.turns)
        first[cell[starts]] = turn[starts]
        return first.reshape(self.layers, self.experts), after


def _turns(layer: NDArray[np.int64], layers: int) -> NDArray[np.int64]:
    """Return for each demand how many of its layer came before."""
    order = np.argsort(layer, kind="stable")
    begun = np.cumsum(np.bincount(layer, minlength=layers)) - np.bincount(layer, minlength=layers)
    turns = np.empty_like(layer)
    turns[order] = np.arange(len(layer)) - np.repeat(begun, np.bincount(layer, minlength=layers))
    return turns


@dataclass
class _Caches:
    """Caches that go through a recording side by side: a policy and a size each, all layers."""

    policies: Sequence[Policy]
    slots: Array  # [P, K, L]
    resident: Array  # [P, K, L, E]
    usage: Usage  # last_used and entered [P, K, L, E]; the rest, alike in all caches, [L, ...]

    def misses(self, stream: _Stream, changes: Rows | None = None) -> Iterator[Array]:
        """Yield of each turn which experts are needed and not resident, [P, K, L, E].

        Before its turn each row of `changes`, states of layers, is put in place of what was.
        """
        first, after = stream.next_use
        self.usage.next_use = next_use = first.copy()  # [L, E]
        needed, missed = np.zeros_like(next_use, bool), np.empty_like(self.resident)
        for turn in range(stream.turns):
            for state in () if changes is None else changes[changes["position"] == turn]:
                self._put(state)
            part = stream.part(turn)
            needed[...] = False
            needed.reshape(-1)[stream.cell[part]] = True
            next_use.reshape(-1)[stream.cell[part]] = after[part]
            np.greater(needed, self.resident, out=missed)
            self.usage.touch(needed, missed)
            self._admit(needed, missed)
            yield missed

    def _admit(self, needed: Array, missed: Array) -> None:
        rows = (-1, needed.shape[-1])
        scores = np.empty(missed.shape)
        for place, policy in enumerate(self.policies):
            scores[place] = policy.scores(_seen_by(place, self.usage))
        bypass = np.array([policy.bypass for policy in self.policies])[:, None, None]
        turns = admit(
            self.resident.reshape(rows),
            np.broadcast_to(needed, missed.shape).reshape(rows),
            missed.reshape(rows),
            scores=scores.reshape(rows),
            slots=self.slots.reshape(-1),
            bypass=np.broadcast_to(bypass, self.slots.shape).reshape(-1),
        )
        for _ in turns:
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
    """Return what one policy's caches saw, as views."""
    return replace(usage, last_used=usage.last_used[place], entered=usage.entered[place])


def _start(trace: Trace, stream: _Stream, policies: Sequence[Policy], slots: Array) -> _Caches:
    """Return caches as they begin, of [K, L] slots; `sweep` tells how."""
    starts = _start_states(trace)
    usage = replace(usage_of(starts), next_use=stream.next_use[0])  # [L, ...]
    numbers = np.arange(stream.experts)
    highest = numbers >= stream.experts - slots[..., None]  # [K, L, E]
    shape = (len(policies), *highest.shape)  # [P, K, L, E]
    resident, fresh = np.empty(shape, bool), np.empty(shape, bool)
    for place, policy in enumerate(policies):
        scores = np.broadcast_to(policy.scores(usage), usage.last_used.shape)
        rank = scores.argsort(axis=-1, kind="stable").argsort(axis=-1)  # [L, E]
        best = rank >= stream.experts - slots[..., None]
        same = policy_name(policy) == trace.provenance.get("policy")
        as_recorded = (same & (starts["slots"] == slots))[..., None]  # [K, L, 1]
        fresh[place] = ~as_recorded & (usage.clock == 0)
        resident[place] = np.where(usage.clock == 0, highest, best)
        resident[place] = np.where(as_recorded, starts["resident"], resident[place])
    unseen = np.where(highest, numbers, NEVER)
    usage.last_used = np.where(fresh, unseen, usage.last_used)
    usage.entered = np.where(fresh, unseen, usage.entered)
    return _Caches(policies, np.broadcast_to(slots, shape[:-1]).copy(), resident, usage)


def _start_states(trace: Trace) -> Rows:
    """Return each layer's state at the start, [L]."""
    starts = trace.states[trace.states["reason"] == START]
    ordered: Rows = starts[np.argsort(starts["layer"])]
    return ordered


def replay(trace: Trace, policy: str | Policy | None = None, slots: int | None = None) -> Replay:
    """Return what one cache would have done with a recording.

    Without policy and slots it is the one that was recorded: it begins with the recorded residents
    and what was known of them, follows resizes, and goes on from where a demand that was cut left
    it. With either, it is a cache of that policy or of as many slots in every layer, which begins
    as `sweep` tells, keeps its size and ends every demand.

    Raises
    ------
    ConfigError
        If there is no such policy, or slots aren't 1 to the number of experts.
    TraceError
        If the trace is empty, or its policy isn't one of mixoff's and none was given.
    """
    trace.check()
    stream, starts = _Stream(trace), _start_states(trace)
    chosen = _recorded_policy(trace) if policy is None else policy_named(policy)
    size = starts["slots"] if slots is None else _checked_slots([slots], stream.experts)
    caches = _start(trace, stream, [chosen], np.broadcast_to(size, (1, stream.layers)))
    same = slots is None and policy_name(chosen) == trace.provenance.get("policy")
    hit = np.empty(len(stream.cell), bool)
    for turn, missed in enumerate(caches.misses(stream, trace.states if same else None)):
        part = stream.part(turn)
        hit[stream.order[part]] = ~missed.reshape(-1)[stream.cell[part]]
    layer = stream.cell // stream.experts
    hits = np.bincount(layer, weights=hit[stream.order], minlength=stream.layers).astype(int)
    return Replay(hit, tuple(hits.tolist()), tuple((stream.needed_per_layer - hits).tolist()))


def sweep(
    trace: Trace,
    policies: Iterable[str | Policy] | str = ("lru", "lfu", "belady"),
    slots: Iterable[int] | int | None = None,
    *,
    executor: Executor | None = None,
) -> "pd.DataFrame":
    """Return what caches of each policy and size would have done with a recording.

    A cache of the recorded policy and size begins with the recorded residents. If nothing was
    demanded before the recording, any other begins as a cache does, with the highest experts
    inside; else with those that its policy scores highest by what was used until then, of equal
    ones the highest. Resizes and demands that were cut are not followed.

    Parameters
    ----------
    policies
        Names in `mixoff.policies.POLICIES`, or policies; "floor" is what a cache hits when routing
        has no memory: slots / experts of what is needed.
    slots
        How many experts of a layer are resident: 1 to all of them; by default, each of these.
    executor
        Where to work, a policy at a time: any executor of `concurrent.futures`, or one like it.

    Returns
    -------
    pandas.DataFrame
        One row for each policy, size and layer: policy, slots, layer, hits, misses, hit_rate (NaN
        where nothing was needed) and bytes, those of the missed records. Counts are whole numbers
        unless there is a floor among the policies.

    Raises
    ------
    ConfigError
        If there is no such policy, or slots aren't 1 to the number of experts.
    TraceError
        If the trace is empty.
    """
    trace.check()
    stream = _Stream(trace)
    wanted = [policies] if isinstance(policies, str | Policy) else list(policies)
    real = [policy_named(policy) for policy in wanted if policy != FLOOR]
    every = range(1, stream.experts + 1) if slots is None else slots
    sizes = _checked_slots([every] if isinstance(every, int) else every, stream.experts)
    grid = np.broadcast_to(sizes[:, None], (len(sizes), stream.layers))  # [K, L]
    groups = [real] if executor is None else [[policy] for policy in real]
    caches = [_start(trace, stream, group, grid) for group in groups if group]
    counted = (map if executor is None else executor.map)(_count_misses, caches, repeat(stream))
    missed = iter(counts for group in counted for counts in group)  # [K, L] of each policy
    floor = (1 - grid / stream.experts) * stream.needed_per_layer
    tables = [floor if policy == FLOOR else next(missed) for policy in wanted]
    return _frame(trace, [_name(policy) for policy in wanted], sizes, stream, np.stack(tables))


def _name(policy: str | Policy) -> str:
    return FLOOR if policy == FLOOR else policy_name(policy)


def _count_misses(caches: _Caches, stream: _Stream) -> Array:
    """Return how much caches miss, [P, K, L]."""
    total = np.zeros(caches.resident.shape, np.int64)
    for missed in caches.misses(stream):
        total += missed
    counts: Array = total.sum(axis=-1)
    return counts


def _frame(
    trace: Trace, names: Sequence[str], sizes: Array, stream: _Stream, misses: Array
) -> "pd.DataFrame":
    import pandas as pd

    index = pd.MultiIndex.from_product(
        [names, sizes.tolist(), range(stream.layers)], names=_COLUMNS[:3]
    )
    needed = np.broadcast_to(stream.needed_per_layer, misses.shape)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        columns = {
            "hits": needed - misses,
            "misses": misses,
            "hit_rate": (needed - misses) / needed,
            "bytes": misses * np.array(trace.record_nbytes),
        }
    flat = {name: column.reshape(-1) for name, column in columns.items()}
    return pd.DataFrame(flat, index=index).reset_index()


def _recorded_policy(trace: Trace) -> Policy:
    name = trace.provenance.get("policy")
    if name not in tuple(POLICIES):
        raise TraceError(
            f"the recorded policy is {name!r}, none of {', '.join(POLICIES)}: give the policy, too."
        )
    return policy_named(str(name))


def _checked_slots(slots: Iterable[int], experts: int) -> Array:
    sizes = list(slots)
    wrong = [size for size in sizes if not 1 <= operator.index(size) <= experts]
    if wrong or not sizes:
        raise ConfigError(f"slots={sizes}: a layer has {experts} experts, so give 1 to {experts}.")
    return np.array(sizes)
