"""What other caches would have done with a recording. Knows policies and slots; no times."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import repeat
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixoff.errors import ConfigError, TraceError
from mixoff.policies.base import Policy
from mixoff.policies.registry import POLICIES, policy_name, policy_named
from mixoff.policies.usage import NEVER, Array
from mixoff.simulate.batch import BatchedCaches, Rounds
from mixoff.trace import Trace
from mixoff.trace.schema import START, Rows, usage_of

if TYPE_CHECKING:
    import pandas as pd

# P policies, K sizes, L layers, E experts, M needed experts

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


def _start(trace: Trace, turns: Rounds, policies: Sequence[Policy], slots: Array) -> BatchedCaches:
    """Return caches as they begin, of [K, L] slots; `sweep` tells how."""
    starts = _start_states(trace)
    usage = replace(usage_of(starts), next_use=turns.next_use[0])  # [L, ...]
    numbers = np.arange(turns.experts)
    highest = numbers >= turns.experts - slots[..., None]  # [K, L, E]
    shape = (len(policies), *highest.shape)  # [P, K, L, E]
    resident, fresh = np.empty(shape, bool), np.empty(shape, bool)
    for place, policy in enumerate(policies):
        scores = np.broadcast_to(policy.scores(usage), usage.last_used.shape)
        rank = scores.argsort(axis=-1, kind="stable").argsort(axis=-1)  # [L, E]
        best = rank >= turns.experts - slots[..., None]
        same = policy_name(policy) == trace.provenance.get("policy")
        as_recorded = (same & (starts["slots"] == slots))[..., None]  # [K, L, 1]
        fresh[place] = ~as_recorded & (usage.clock == 0)
        resident[place] = np.where(usage.clock == 0, highest, best)
        resident[place] = np.where(as_recorded, starts["resident"], resident[place])
    unseen = np.where(highest, numbers, NEVER)
    usage.last_used = np.where(fresh, unseen, usage.last_used)
    usage.entered = np.where(fresh, unseen, usage.entered)
    return BatchedCaches(policies, np.broadcast_to(slots, shape[:-1]).copy(), resident, usage)


def _start_states(trace: Trace) -> Rows:
    """Return each layer's state at the start, [L]."""
    starts = trace.states[trace.states["reason"] == START]
    ordered: Rows = starts[np.argsort(starts["layer"])]
    if ordered["layer"].tolist() != list(range(trace.num_layers)):
        raise TraceError("a trace in which not every layer has one state to start from.")
    return ordered


def replay(trace: Trace, policy: str | Policy | None = None, slots: int | None = None) -> Replay:
    """Return what one cache would have done with a recording.

    Without policy and slots it is the one that was recorded: it begins with the recorded residents
    and what was known of them, follows resizes, goes on from where a demand that was cut left it,
    and lets nobody in who was computed where it lay. With either, it is a cache of that policy or
    of as many slots in every layer, which begins as `sweep` tells, keeps its size, ends every
    demand, and fetches what it misses: what would have been computed then, no recording knows.

    Raises
    ------
    ConfigError
        If there is no such policy, or slots aren't 1 to the number of experts.
    TraceError
        If the trace is empty, or its policy isn't one of mixoff's and none was given.
    """
    turns, starts = Rounds(trace), _start_states(trace)
    chosen = _recorded_policy(trace) if policy is None else policy_named(policy)
    size = starts["slots"] if slots is None else _checked_slots(slots, turns.experts)
    caches = _start(trace, turns, [chosen], np.broadcast_to(size, (1, turns.layers)))
    same = slots is None and policy_name(chosen) == trace.provenance.get("policy")
    hit = np.empty(len(turns.cell), bool)
    for turn, missed in enumerate(caches.misses(turns, trace.states if same else None)):
        part = turns.part(turn)
        hit[turns.order[part]] = ~missed.reshape(-1)[turns.cell[part]]
    layer = turns.cell // turns.experts
    hits = np.bincount(layer, weights=hit[turns.order], minlength=turns.layers).astype(int)
    return Replay(hit, tuple(hits.tolist()), tuple((turns.needed_per_layer - hits).tolist()))


def sweep(
    trace: Trace,
    policies: Iterable[str | Policy] | str | Policy = ("lru", "lfu", "belady"),
    slots: Iterable[int] | int | None = None,
    *,
    executor: Executor | None = None,
) -> "pd.DataFrame":
    """Return what caches of each policy and size would have done with a recording.

    A cache of the recorded policy and size begins with the recorded residents. If nothing was
    demanded before the recording, any other begins as a cache does, with the highest experts
    inside; else with those that its policy scores highest by what was used until then, of equal
    ones the highest. Resizes and demands that were cut are not followed, and all misses are
    fetched.

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
        If there is no such policy, none at all, or slots aren't 1 to the number of experts.
    TraceError
        If the trace is empty.
    """
    turns = Rounds(trace)
    wanted = _checked_policies(policies)
    real = [policy_named(policy) for policy in wanted if policy != FLOOR]
    sizes = _checked_slots(range(1, turns.experts + 1) if slots is None else slots, turns.experts)
    grid = np.broadcast_to(sizes[:, None], (len(sizes), turns.layers))  # [K, L]
    groups = [real] if executor is None else [[policy] for policy in real]
    caches = [_start(trace, turns, group, grid) for group in groups if group]
    counted = (map if executor is None else executor.map)(_count_misses, caches, repeat(turns))
    missed = iter(counts for group in counted for counts in group)  # [K, L] of each policy
    floor = (1 - grid / turns.experts) * turns.needed_per_layer
    tables = [floor if policy == FLOOR else next(missed) for policy in wanted]
    return _frame(trace, [_name(policy) for policy in wanted], sizes, turns, np.stack(tables))


def _name(policy: str | Policy) -> str:
    return FLOOR if policy == FLOOR else policy_name(policy)


def _count_misses(caches: BatchedCaches, turns: Rounds) -> Array:
    """Return how much caches miss, [P, K, L]."""
    total = np.zeros(caches.resident.shape, np.int64)
    for missed in caches.misses(turns):
        total += missed
    counts: Array = total.sum(axis=-1)
    return counts


def _frame(
    trace: Trace, names: Sequence[str], sizes: Array, turns: Rounds, misses: Array
) -> "pd.DataFrame":
    import pandas as pd

    index = pd.MultiIndex.from_product(
        [names, sizes.tolist(), range(turns.layers)], names=_COLUMNS[:3]
    )
    needed = np.broadcast_to(turns.needed_per_layer, misses.shape)
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


def _checked_policies(policies: Iterable[str | Policy] | str | Policy) -> list[str | Policy]:
    wanted = [policies] if isinstance(policies, str | Policy) else list(policies)
    known = (*POLICIES, FLOOR)
    wrong = [policy for policy in wanted if not isinstance(policy, Policy) and policy not in known]
    if wrong or not wanted:
        raise ConfigError(f"policies={wanted}: give some of {', '.join(known)}, or a Policy.")
    return wanted


def _checked_slots(slots: Iterable[int] | int, experts: int) -> Array:
    sizes = [slots] if isinstance(slots, int) else list(slots)
    fits = [isinstance(size, Integral) and 1 <= size <= experts for size in sizes]
    if not (fits and all(fits)):
        raise ConfigError(f"slots={sizes}: a layer has {experts} experts, so give 1 to {experts}.")
    return np.array(sizes)
