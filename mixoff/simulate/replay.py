"""Hits and misses of any cache in a recording. Knows policies and slots; no times."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import repeat
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixoff.errors import ConfigError, TraceError
from mixoff.policies.admission import Ranking
from mixoff.policies.base import Policy, has_memory, refuse_nan
from mixoff.policies.registry import POLICIES, policy_name, policy_named
from mixoff.policies.usage import NEVER, Array, Usage
from mixoff.simulate.batch import BatchedCaches, Rounds
from mixoff.trace import Trace
from mixoff.trace.schema import START, Rows, usage_of

if TYPE_CHECKING:
    import pandas as pd

# P policies, K sizes, L layers, E experts, M needed experts

FLOOR = "floor"  # the hit rate of any cache if routing has no memory: slots / experts
_COLUMNS = ("policy", "slots", "layer", "hits", "misses", "hit_rate", "bytes")


@dataclass(frozen=True)
class Replay:
    """Hits and misses of one cache in a recording.

    Parameters
    ----------
    hit
        [M] whether each needed expert was resident, in the order of `Trace.demands().expert`.
    hits_per_layer, misses_per_layer
        How many were and weren't, in each layer.
    """

    hit: NDArray[np.bool_]
    hits_per_layer: tuple[int, ...]
    misses_per_layer: tuple[int, ...]

    @property
    def hit_rate(self) -> float:
        """Hits over needed experts, 0 to 1; NaN if none was needed."""
        return float(self.hit.mean()) if self.hit.size else float("nan")


def _start(trace: Trace, rounds: Rounds, policies: Sequence[Policy], slots: Array) -> BatchedCaches:
    """Return caches of [K, L] slots in the state that `sweep` describes."""
    starts = _start_states(trace)
    usage = replace(usage_of(starts), next_use=rounds.next_use[0])  # [L, ...]
    numbers = np.arange(rounds.experts)
    highest = numbers >= rounds.experts - slots[..., None]  # [K, L, E]
    shape = (len(policies), *highest.shape)  # [P, K, L, E]
    resident, fresh = np.empty(shape, bool), np.empty(shape, bool)
    for place, policy in enumerate(policies):
        scores = _start_scores(policy, usage, starts)
        rank = scores.argsort(axis=-1, kind="stable").argsort(axis=-1)  # [L, E]
        best = rank >= rounds.experts - slots[..., None]
        same = policy_name(policy) == trace.provenance.get("policy")
        as_recorded = (same & (starts["slots"] == slots))[..., None]  # [K, L, 1]
        fresh[place] = ~as_recorded & (usage.clock == 0)
        resident[place] = np.where(usage.clock == 0, highest, best)
        resident[place] = np.where(as_recorded, starts["resident"], resident[place])
    unseen = np.where(highest, numbers, NEVER)
    usage.last_used = np.where(fresh, unseen, usage.last_used)
    usage.entered = np.where(fresh, unseen, usage.entered)
    return BatchedCaches(policies, np.broadcast_to(slots, shape[:-1]).copy(), resident, usage)


def _start_scores(policy: Policy, usage: Usage, starts: Rows) -> Array:
    """Return a policy's scores of the recorded residents, [L, E]."""
    ranking = Ranking(policy, usage, starts["resident"], starts["slots"][:, None])
    with np.errstate(all="ignore"):  # such as count / clock, 0 / 0 before the first demand
        scores = np.broadcast_to(ranking.scores(), usage.last_used.shape)
    refuse_nan(policy, np.where(usage.clock > 0, scores, 0.0))
    return scores


def _start_states(trace: Trace) -> Rows:
    """Return each layer's state at the start, [L]."""
    starts = trace.states[trace.states["reason"] == START]
    ordered: Rows = starts[np.argsort(starts["layer"])]
    if ordered["layer"].tolist() != list(range(trace.num_layers)):
        raise TraceError("a trace in which not every layer has one state to start from.")
    return ordered


def replay(trace: Trace, policy: str | Policy | None = None, slots: int | None = None) -> Replay:
    """Return the hits and misses that one cache would have had in a recording.

    Without `slots` and with the recorded policy it is the cache that was recorded: it begins with
    the recorded residents and their usage, follows resizes and interrupted demands, and lets no
    miss in that was computed in host memory. Any other cache begins as `sweep` describes, keeps its
    size, completes every demand, and fetches all its misses: no recording says which of them would
    have been computed.

    A recording holds neither a policy's memory nor `Usage.recent`. Both begin anew with it, so the
    replay of a policy that reads them is the live run hit for hit if the recording began with the
    cache.

    Raises
    ------
    ConfigError
        If there is no such policy, or slots aren't 1 to the number of experts.
    TraceError
        If the trace is empty, or its policy isn't one of mixoff's and `policy` is None.
    """
    rounds, starts = Rounds(trace), _start_states(trace)
    chosen = _recorded_policy(trace) if policy is None else policy_named(policy)
    size = starts["slots"] if slots is None else _checked_slots(slots, rounds.experts)
    caches = _start(trace, rounds, [chosen], np.broadcast_to(size, (1, rounds.layers)))
    same = slots is None and policy_name(chosen) == trace.provenance.get("policy")
    hit = np.empty(len(rounds.cell), bool)
    for number, missed in enumerate(caches.misses(rounds, trace.states if same else None)):
        part = rounds.part(number)
        hit[rounds.order[part]] = ~missed.reshape(-1)[rounds.cell[part]]
    layer = rounds.cell // rounds.experts
    hits = np.bincount(layer, weights=hit[rounds.order], minlength=rounds.layers).astype(int)
    return Replay(hit, tuple(hits.tolist()), tuple((rounds.needed_per_layer - hits).tolist()))


def sweep(
    trace: Trace,
    policies: Iterable[str | Policy] | str | Policy = ("lru", "lfu", "belady"),
    slots: Iterable[int] | int | None = None,
    *,
    executor: Executor | None = None,
) -> "pd.DataFrame":
    """Return the hits and misses that caches of each policy and size would have had in a recording.

    A cache of the recorded policy and size begins with the recorded residents. Any other begins
    with the experts of the highest numbers, as a new cache does, if nothing was demanded before the
    recording; else with those that its policy scores highest, by their use until then, of equal
    scores the highest numbers. Resizes and interrupted demands are not followed, and all misses
    are fetched. `replay` describes what a recording doesn't hold.

    Parameters
    ----------
    policies
        Names in `mixoff.policies.POLICIES`, or policies; "floor" is the hit rate of any cache if
        routing has no memory, slots / experts.
    slots
        How many experts of a layer are resident: 1 to all of them; by default, each of these.
    executor
        Runs the policies, each as a task of its own: one of `concurrent.futures`, or one like it.

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
    rounds = Rounds(trace)
    wanted = _checked_policies(policies)
    real = [policy_named(policy) for policy in wanted if policy != FLOOR]
    sizes = _checked_slots(range(1, rounds.experts + 1) if slots is None else slots, rounds.experts)
    grid = np.broadcast_to(sizes[:, None], (len(sizes), rounds.layers))  # [K, L]
    groups = _groups(real, apart=executor is not None)
    caches = [_start(trace, rounds, [real[n] for n in group], grid) for group in groups]
    counted = (map if executor is None else executor.map)(_count_misses, caches, repeat(rounds))
    misses = {  # [K, L] of each policy
        n: counts
        for group, of_group in zip(groups, counted, strict=True)
        for n, counts in zip(group, of_group, strict=True)
    }
    missed = iter(misses[n] for n in range(len(real)))
    floor = (1 - grid / rounds.experts) * rounds.needed_per_layer
    tables = [floor if policy == FLOOR else next(missed) for policy in wanted]
    return _frame(trace, [_name(policy) for policy in wanted], sizes, rounds, np.stack(tables))


def _groups(policies: Sequence[Policy], *, apart: bool) -> list[list[int]]:
    """Return places of policies to replay side by side: all that have no memory, or one alone."""
    alone = [n for n, policy in enumerate(policies) if apart or has_memory(policy)]
    together = [n for n in range(len(policies)) if n not in alone]
    return [*([together] if together else []), *([n] for n in alone)]


def _name(policy: str | Policy) -> str:
    return FLOOR if policy == FLOOR else policy_name(policy)


def _count_misses(caches: BatchedCaches, rounds: Rounds) -> Array:
    """Return the misses of caches, [P, K, L]."""
    total = np.zeros(caches.resident.shape, np.int64)
    for missed in caches.misses(rounds):
        total += missed
    counts: Array = total.sum(axis=-1)
    return counts


def _frame(
    trace: Trace, names: Sequence[str], sizes: Array, rounds: Rounds, misses: Array
) -> "pd.DataFrame":
    import pandas as pd

    index = pd.MultiIndex.from_product(
        [names, sizes.tolist(), range(rounds.layers)], names=_COLUMNS[:3]
    )
    needed = np.broadcast_to(rounds.needed_per_layer, misses.shape)
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
