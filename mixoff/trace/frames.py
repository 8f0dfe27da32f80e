"""A trace as data frames: by event, by step, by layer. Knows sums; judges nothing.

pandas is imported by the functions that need it, since a cache records without it.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixoff.trace.schema import (
    COMPUTED,
    DEMAND,
    HIT,
    KINDS,
    MISS,
    NOTHING,
    OUTCOMES,
    PREFETCH,
    TIERS,
    Rows,
)

if TYPE_CHECKING:
    import pandas as pd

PHASES = ("prefill", "decode")
PREFILL, DECODE = range(len(PHASES))
NS_PER_MS = 1e6


def phase_of(rows: Rows) -> NDArray[np.int8]:
    """Return the phase of each row: a step of more than one token is prefill."""
    return np.where(rows["tokens"] > 1, PREFILL, DECODE).astype(np.int8)


def event_frame(events: Rows) -> "pd.DataFrame":
    """Return one row an event; values that don't apply are missing."""
    import pandas as pd

    def words(codes: NDArray[Any], names: tuple[str, ...]) -> "pd.Categorical":
        return pd.Categorical.from_codes(codes, categories=list(names))

    unknown = events["expert"] == NOTHING
    return pd.DataFrame(
        {
            "kind": words(events["kind"], KINDS),
            "step": events["step"],
            "phase": words(phase_of(events), PHASES),
            "tokens": events["tokens"],
            "layer": events["layer"],
            "expert": pd.arrays.IntegerArray(events["expert"].copy(), unknown),
            "tier": words(events["tier"], TIERS),
            "target": words(events["target"], TIERS),
            "outcome": words(events["outcome"], OUTCOMES),
            "guess": events["guess"],
            "layers_ahead": events["ahead"],
            "nbytes": events["nbytes"],
            "start_ms": events["start_ns"] / NS_PER_MS,
            "duration_ms": events["duration_ns"] / NS_PER_MS,
            "wait_ms": events["wait_ns"] / NS_PER_MS,
        }
    )


def step_frame(events: Rows) -> "pd.DataFrame":
    """Return one row a step.

    A step lasts until the next one begins. The last step of a reply, which a prompt or nothing
    follows, lasts until the end of its last demand.
    """
    import pandas as pd

    heads = events[events["kind"] == DEMAND]
    first = np.flatnonzero(np.diff(heads["step"], prepend=NOTHING) > 0)  # demand of each step
    last = np.append(first[1:], len(heads)) - 1 if len(first) else first
    start, phase = heads["start_ns"][first], phase_of(heads[first])
    end = heads["start_ns"][last] + heads["duration_ns"][last]
    goes_on = (phase[:-1] == PREFILL) | (phase[1:] == DECODE)
    end[:-1] = np.where(goes_on, start[1:], end[:-1])
    return pd.DataFrame(
        {
            "step": np.arange(len(first)),
            "phase": pd.Categorical.from_codes(phase, categories=list(PHASES)),
            "tokens": heads["tokens"][first],
            **_tallies(events, "step", len(first)),
            "start_ms": start / NS_PER_MS,
            "duration_ms": (end - start) / NS_PER_MS,
        }
    )


def layer_frame(events: Rows, num_layers: int) -> "pd.DataFrame":
    """Return one row a layer; its duration is that of its demands, without attention."""
    import pandas as pd

    heads = events[events["kind"] == DEMAND]
    lasted = np.bincount(heads["layer"], heads["duration_ns"], minlength=num_layers)
    return pd.DataFrame(
        {
            "layer": np.arange(num_layers),
            **_tallies(events, "layer", num_layers),
            "duration_ms": lasted / NS_PER_MS,
        }
    )


def _tallies(events: Rows, by: str, groups: int) -> dict[str, NDArray[Any]]:
    """Return counts and sums of each group, a step or a layer."""

    def count(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(events[by][chosen], minlength=groups)

    def total(column: str, kind: int) -> NDArray[np.int64]:
        rows = events[events["kind"] == kind]
        return np.bincount(rows[by], rows[column], minlength=groups).astype(np.int64)

    kind, outcome = events["kind"], events["outcome"]
    hits, misses = count(kind == HIT), count(kind == MISS)
    computed = (kind == MISS) & (outcome == COMPUTED)
    lasted = (events["duration_ns"] - events["wait_ns"])[computed]
    prefetches = {
        f"prefetch_{name}": count((kind == PREFETCH) & (outcome == OUTCOMES.index(name)))
        for name in ("used", "late", "wasted")
    }
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        rate = hits / (hits + misses)
    return {
        "hits": hits,
        "misses": misses,
        "hit_rate": rate,
        "bytes": total("nbytes", MISS),
        **prefetches,
        "computed": count(computed),
        "computed_ms": np.bincount(events[by][computed], lasted, minlength=groups) / NS_PER_MS,
        "wait_ms": total("wait_ns", DEMAND) / NS_PER_MS,
    }
