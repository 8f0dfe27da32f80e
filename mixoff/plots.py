"""Pictures: a data frame or a trace in, matplotlib Axes out. Knows colours; computes nothing new.

Colours are those of Okabe and Ito, "Color universal design" (2008), which most people tell apart,
and every line has a marker of its own, too.
"""

from itertools import cycle, groupby
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mixoff.errors import TraceError
from mixoff.trace import Trace
from mixoff.trace.lanes import EXPERTS, TRUNK, WAIT, Span, spans
from mixoff.trace.tables import DEMAND, NOTHING, Rows

if TYPE_CHECKING:
    import pandas as pd

_BLUE, _SKY, _GREEN = "#0072B2", "#56B4E9", "#009E73"
_ORANGE, _VERMILION, _PURPLE = "#E69F00", "#D55E00", "#CC79A7"
_GREY, _LIGHT = "#555555", "#BBBBBB"

_BOUNDS = {"belady-bypass": ":", "belady": "--", "floor": "-."}  # policies that are no choice
_MARKS = {  # of a time line, in the order of its legend
    TRUNK: _LIGHT,
    EXPERTS: _BLUE,
    WAIT: _VERMILION,
    "copy, demanded": _ORANGE,
    "copy, guessed": _GREEN,
}
_NS_PER_MS = 1e6
_MOST_STEPS_NAMED = 16


def hit_rate(table: "pd.DataFrame", ax: Axes | None = None) -> Axes:
    """Return hit rate against slots of what `mixoff.sweep` gave, a line a policy.

    All layers are taken together. Bounds, which no policy can choose, are grey and dashed.
    """
    axes = ax or plt.subplots(figsize=(7.5, 4), layout="constrained")[1]
    sums = table.groupby(["policy", "slots"], sort=False)[["hits", "misses"]].sum()
    rates = (sums["hits"] / (sums["hits"] + sums["misses"])).unstack("slots").sort_index(axis=1)
    colours = cycle((_BLUE, _VERMILION, _GREEN, _PURPLE, _ORANGE, _SKY))
    markers = cycle("osD^vP")
    for policy in table["policy"].unique():
        bound = _BOUNDS.get(policy)
        style: dict[str, Any] = (
            {"color": _GREY, "linestyle": bound, "zorder": 1}
            if bound
            else {"color": next(colours), "marker": next(markers), "markersize": 5}
        )
        axes.plot(rates.columns, rates.loc[policy], label=policy, **style)
    axes.set(xlabel="slots per layer", ylabel="hit rate", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return axes


def timeline(trace: Trace, *, first_step: int = 0, steps: int = 4, ax: Axes | None = None) -> Axes:
    """Return copies against compute: what was computed, waited for and copied, on one time line.

    Raises
    ------
    TraceError
        If the trace has no such steps.
    """
    events = _chosen(trace, first_step, steps)
    lanes = {lane: [*own] for lane, own in groupby(spans(events), key=lambda span: span.lane)}
    axes = ax or plt.subplots(figsize=(10, 1.6 + 0.4 * len(lanes)), layout="constrained")[1]
    heads = events[events["kind"] == DEMAND]
    zero = int(heads["start_ns"][0])
    for height, own in enumerate(lanes.values()):
        for mark, colour in _MARKS.items():
            bars = [
                ((span.start_ns - zero) / _NS_PER_MS, span.duration_ns / _NS_PER_MS)
                for span in own
                if _mark(span, events) == mark
            ]
            axes.broken_barh(bars, (height - 0.38, 0.76), color=colour, linewidth=0.6)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.invert_yaxis()
    axes.set_xlabel(f"ms since step {first_step} began")
    _name_steps(axes, heads, zero)
    patches = [Patch(color=colour, label=mark) for mark, colour in _MARKS.items()]
    axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return axes


def _chosen(trace: Trace, first_step: int, steps: int) -> Rows:
    if steps < 1 or not 0 <= first_step < trace.num_steps:
        raise TraceError(
            f"first_step={first_step}, steps={steps}: the trace has {trace.num_steps} steps, "
            "from 0: give one of them, and 1 step or more."
        )
    step = trace.events["step"]
    chosen: Rows = trace.events[(step >= first_step) & (step < first_step + steps)]
    return chosen


def _mark(span: Span, events: Rows) -> str:
    if span.label in _MARKS or span.row == NOTHING:
        return span.label
    if span.lane.startswith(WAIT):
        return WAIT
    return "copy, guessed" if events[span.row]["guess"] else "copy, demanded"


def _name_steps(axes: Axes, heads: Rows, zero: int) -> None:
    """Draw where steps begin, and above the picture their numbers."""
    begun = {int(head["step"]): int(head["start_ns"]) for head in heads[::-1]}
    every = -(-len(begun) // _MOST_STEPS_NAMED)
    for place, (step, start_ns) in enumerate(sorted(begun.items())):
        at = (start_ns - zero) / _NS_PER_MS
        axes.axvline(at, color=_GREY, linewidth=0.6, linestyle=":", zorder=0)
        if place % every == 0:
            axes.annotate(
                f"step {step}" if place == 0 else str(step),
                (at, 1.01),
                xycoords=("data", "axes fraction"),
                fontsize="small",
                color=_GREY,
            )
