"""Why a token was slow, in sentences. Knows what to compare; `frames` has the sums."""

from typing import TYPE_CHECKING

import numpy as np

from mixoff.trace.frames import NS_PER_MS, step_frame
from mixoff.trace.schema import COMPUTED, MISS, NOTHING, TIERS, Rows
from mixoff.units import format_nbytes

if TYPE_CHECKING:
    import pandas as pd


def explain(events: Rows, step: int) -> str:
    """Return a line each about a step's duration, its waits, its misses and its guesses.

    The step must be in the recording. It is compared with the median of the steps of its phase.
    """
    steps = step_frame(events)
    own = steps.loc[step]
    alike = steps[steps["phase"] == own["phase"]]
    usual = alike[["duration_ms", "wait_ms", "misses"]].median()
    misses = events[(events["kind"] == MISS) & (events["step"] == step)]
    return "\n".join(
        [
            _length(own, usual, len(alike)),
            _shares(own, usual),
            *_longest_wait(misses),
            *_by_tier(misses),
            _hits(own, usual),
            *_guesses(own),
        ]
    )


def _length(own: "pd.Series", usual: "pd.Series", alike: int) -> str:
    tokens = f", {own['tokens']} tokens" if own["tokens"] > 1 else ""
    line = f"Step {own['step']} ({own['phase']}{tokens}) took {own['duration_ms']:.2f} ms"
    if alike < 2 or not usual["duration_ms"]:
        return f"{line}."
    times = own["duration_ms"] / usual["duration_ms"]
    return (
        f"{line}: {times:.2f} times the median of {alike} {own['phase']} steps, "
        f"{usual['duration_ms']:.2f} ms."
    )


def _shares(own: "pd.Series", usual: "pd.Series") -> str:
    waited, lasted = own["wait_ms"], own["duration_ms"]
    share = f" ({100 * waited / lasted:.1f} %)" if lasted else ""
    return (
        f"It waited {waited:.2f} ms{share} for experts and computed {max(0, lasted - waited):.2f} "
        f"ms; the median waits {usual['wait_ms']:.2f} ms."
    )


def _longest_wait(misses: Rows) -> list[str]:
    if not misses["wait_ns"].any():
        return []
    longest = misses[misses["wait_ns"].argmax()]
    return [
        f"It waited longest in layer {longest['layer']}: {longest['wait_ns'] / NS_PER_MS:.2f} ms "
        f"for expert {longest['expert']}, {format_nbytes(int(longest['nbytes']))} "
        f"{_place(int(longest['tier']))}."
    ]


def _place(tier: int) -> str:
    places = {"staged": "on the way to the device", "host": "in host memory", "disk": "on disk"}
    return places[TIERS[tier]] if tier != NOTHING else "that never came"


def _by_tier(misses: Rows) -> list[str]:
    lines = []
    computed = misses[misses["outcome"] == COMPUTED]
    if len(computed):
        lasted = (computed["duration_ns"] - computed["wait_ns"]).sum() / NS_PER_MS
        lines.append(f"Misses computed in host memory: {len(computed)}, {lasted:.2f} ms.")
    fetched = misses[misses["outcome"] != COMPUTED]
    for tier in np.unique(fetched["tier"]).tolist():
        rows = fetched[fetched["tier"] == tier]
        lines.append(
            f"Misses {_place(tier)}: {len(rows)}, {format_nbytes(int(rows['nbytes'].sum()))}, "
            f"{rows['wait_ns'].sum() / NS_PER_MS:.2f} ms of waiting."
        )
    return lines


def _hits(own: "pd.Series", usual: "pd.Series") -> str:
    return (
        f"Of {own['hits'] + own['misses']} experts {own['hits']} were in a slot and "
        f"{own['misses']} missed; the median misses {usual['misses']:g}."
    )


def _guesses(own: "pd.Series") -> list[str]:
    counts = {outcome: own[f"prefetch_{outcome}"] for outcome in ("used", "late", "wasted")}
    if not any(counts.values()):
        return []
    words = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    return [f"Of the prefetches that began in it: {words}."]
