"""A trace's two tables, events and layers' states, as numpy's structured arrays. Knows no files.

Rows of events stand in this order: each demand, followed by its hits, misses and evictions; after
all demands, copies and prefetches. Codes are places in the tuples below, NOTHING where a column
doesn't apply. Times are nanoseconds since the recording began.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from mixoff.errors import TraceError
from mixoff.policies.usage import Usage
from mixoff.trace.events import Outcome, Tier

Rows = NDArray[np.void]  # a structured array

KINDS = ("demand", "hit", "miss", "eviction", "copy", "prefetch")
DEMAND, HIT, MISS, EVICTION, COPY, PREFETCH = range(len(KINDS))
TIERS: tuple[Tier, ...] = get_args(Tier)
OUTCOMES: tuple[str, ...] = (*get_args(Outcome), "cut", "computed")
CUT = OUTCOMES.index("cut")  # a demand that an error or its consumer ended early
COMPUTED = OUTCOMES.index("computed")  # a miss that was computed in host memory
REASONS = ("start", "resize", "interrupted")
START = REASONS.index("start")
NOTHING = -1


class Event(NamedTuple):
    """A row of events."""

    kind: int
    step: int  # counted from 0; of a copy or a prefetch, the step in which it began
    tokens: int  # of that step: more than one is prefill
    layer: int
    expert: int = NOTHING  # the victim of an eviction
    tier: int = NOTHING  # of a hit or miss: where its record was; of a copy: the source
    target: int = NOTHING  # of a copy
    outcome: int = NOTHING  # of a prefetch; CUT for such a demand, COMPUTED for such a miss
    guess: bool = False  # of a copy: it began before any demand of the expert
    ahead: int = 0  # of a prefetch: how many layers before its demand
    nbytes: int = 0
    start_ns: int = 0
    duration_ns: int = 0
    wait_ns: int = 0  # how long compute waited


EVENT = np.dtype(
    [
        ("kind", "i1"),
        ("step", "i4"),
        ("tokens", "i4"),
        ("layer", "i4"),
        ("expert", "i4"),
        ("tier", "i1"),
        ("target", "i1"),
        ("outcome", "i1"),
        ("guess", "?"),
        ("ahead", "i4"),
        ("nbytes", "i8"),
        ("start_ns", "i8"),
        ("duration_ns", "i8"),
        ("wait_ns", "i8"),
    ]
)


def state_dtype(num_experts: int) -> np.dtype[np.void]:
    """Return the type of a row of states: what `events.Snapshot` holds, and when it was taken."""
    return np.dtype(
        [
            ("layer", "i4"),
            ("position", "i8"),  # demands of that layer that were recorded before
            ("reason", "i1"),
            ("slots", "i4"),
            ("resident", "?", (num_experts,)),
            ("last_used", "i8", (num_experts,)),
            ("entered", "i8", (num_experts,)),
            ("count", "i8", (num_experts,)),
            ("clock", "i8"),
        ]
    )


def usage_of(states: Rows) -> Usage:
    """Return the usage in rows of states: arrays [R, E] and [R, 1]; `recent` begins anew."""
    return Usage(
        last_used=states["last_used"].copy(),
        entered=states["entered"].copy(),
        count=states["count"].copy(),
        recent=np.zeros(states["count"].shape),
        clock=states["clock"][:, None].copy(),
        layer=states["layer"][:, None].astype(np.int64),
    )


@dataclass(frozen=True)
class Demands:
    """The experts of each demand, in the order recorded: N demands, M needed experts in all.

    Demand n's experts are ``expert[first[n]:first[n + 1]]``: its hits, then its misses.
    """

    step: NDArray[np.int64]  # [N]
    layer: NDArray[np.int64]  # [N]
    tokens: NDArray[np.int64]  # [N]
    start_ns: NDArray[np.int64]  # [N]
    duration_ns: NDArray[np.int64]  # [N]
    first: NDArray[np.int64]  # [N + 1]
    expert: NDArray[np.int64]  # [M]
    hit: NDArray[np.bool_]  # [M]
    computed: NDArray[np.bool_]  # [M] a miss that was computed in host memory

    def __len__(self) -> int:
        return len(self.layer)


def demands_of(events: Rows) -> Demands:
    """Return the experts of each demand."""
    kind = events["kind"]
    rows = np.flatnonzero(kind == DEMAND)
    needed = np.flatnonzero((kind == HIT) | (kind == MISS))
    columns: dict[str, Any] = {
        name: events[name][rows].astype(np.int64)
        for name in ("step", "layer", "tokens", "start_ns", "duration_ns")
    }
    return Demands(
        **columns,
        first=np.append(np.searchsorted(needed, rows), len(needed)),
        expert=events["expert"][needed].astype(np.int64),
        hit=kind[needed] == HIT,
        computed=(kind[needed] == MISS) & (events["outcome"][needed] == COMPUTED),
    )


def check(events: Rows, states: Rows, *, num_layers: int, num_experts: int) -> None:
    """Refuse tables that no recording has.

    Raises
    ------
    TraceError
        Naming the first rule that is broken.
    """
    for broken, rule in (
        *_broken_codes(events, states, num_layers, num_experts),
        *_broken_numbers(events, states),
    ):
        if np.any(broken):
            raise TraceError(f"{rule}: record it again.")
    for broken, rule in (*_broken_order(events), *_broken_states(events, states, num_layers)):
        if np.any(broken):
            raise TraceError(f"{rule}: record it again.")


_Rule = tuple[Any, str]  # where it is broken; its message


def _outside(column: NDArray[Any], low: int, high: int) -> NDArray[np.bool_]:
    return (column < low) | (column >= high)


def _broken_codes(
    events: Rows, states: Rows, num_layers: int, num_experts: int
) -> tuple[_Rule, ...]:
    lowest = np.where(events["kind"] == DEMAND, NOTHING, 0)
    return (
        (_outside(events["kind"], 0, len(KINDS)), "an event of an unknown kind"),
        (_outside(events["layer"], 0, num_layers), f"an event's layer isn't below {num_layers}"),
        (
            (events["expert"] < lowest) | (events["expert"] >= num_experts),
            f"an event's expert isn't below {num_experts}",
        ),
        (_outside(events["tier"], NOTHING, len(TIERS)), "an event of an unknown tier"),
        (_outside(events["target"], NOTHING, len(TIERS)), "a copy to an unknown tier"),
        (_outside(events["outcome"], NOTHING, len(OUTCOMES)), "an unknown outcome"),
        (_outside(states["layer"], 0, num_layers), f"a state's layer isn't below {num_layers}"),
        (_outside(states["reason"], 0, len(REASONS)), "a state of an unknown reason"),
        (_outside(states["slots"], 0, num_experts + 1), f"slots aren't 0 to {num_experts}"),
    )


def _broken_numbers(events: Rows, states: Rows) -> tuple[_Rule, ...]:
    amounts = ("step", "tokens", "ahead", "nbytes", "duration_ns", "wait_ns")
    return (
        *((events[name] < 0, f"an event's {name} is negative") for name in amounts),
        (states["resident"].sum(axis=1) > states["slots"], "more residents than slots"),
        (states["clock"] < 0, "a layer's clock is negative"),
    )


def _broken_order(events: Rows) -> tuple[_Rule, ...]:
    kind = events["kind"]
    demand = np.cumsum(kind == DEMAND) - 1  # number of the demand that a row follows
    part = np.isin(kind, (HIT, MISS, EVICTION))
    headed = part & (demand >= 0)
    heads = np.flatnonzero(kind == DEMAND)[demand[headed]]
    needed = np.isin(kind, (HIT, MISS))
    pairs = demand[needed] * 2**32 + events["expert"][needed]
    return (
        (part & (demand < 0), "hits or misses of no demand"),
        (events["layer"][heads] != events["layer"][headed], "a hit or miss of another layer"),
        (events["step"][heads] != events["step"][headed], "a hit or miss of another step"),
        (len(np.unique(pairs)) < len(pairs), "a demand needs an expert twice"),
        (np.diff(events["step"][kind == DEMAND]) < 0, "steps run backwards"),
    )


def _broken_states(events: Rows, states: Rows, num_layers: int) -> tuple[_Rule, ...]:
    demands = np.bincount(events["layer"][events["kind"] == DEMAND], minlength=num_layers)
    starts = states[states["reason"] == START]
    begun = np.bincount(starts["layer"], minlength=num_layers)
    return (
        (_outside(states["position"], 0, demands[states["layer"]] + 1), "a state of no demand"),
        (starts["position"] != 0, "a state that isn't the first is called the start"),
        (begun != 1, "not every layer has one state to start from"),
    )
