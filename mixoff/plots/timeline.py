"""A plot of a trace as a time line: copies against compute. Computes nothing new."""

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mixoff.errors import TraceError
from mixoff.plots.style import (
    BLUE,
    GREEN,
    GREY,
    GUIDE,
    LIGHT,
    ORANGE,
    VERMILION,
    axes_on_paper,
    legend_above,
    on_paper,
)
from mixoff.trace import Trace
from mixoff.trace.schema import DEMAND, NOTHING, Rows
from mixoff.trace.timeline import EXPERTS, NON_EXPERT, ON_HOST, WAIT, Span, spans

if TYPE_CHECKING:
    import pandas as pd

DEMANDED, GUESSED = "copy, demanded", "copy, guessed"
MARKS = (NON_EXPERT, EXPERTS, WAIT, DEMANDED, GUESSED)
_NS_PER_MS = 1e6
_MARKS = {NON_EXPERT: LIGHT, EXPERTS: BLUE, WAIT: VERMILION, DEMANDED: ORANGE, GUESSED: GREEN}
_MOST_STEPS_NAMED = 8


def timeline_table(trace: Trace, *, first_step: int = 0, steps: int = 4) -> "pd.DataFrame":
    """Return the compute, waits and copies of some steps, a row an interval of time.

    Columns: lane, mark (one of MARKS), expert (missing for non-expert parameters and whole
    demands), start_ms since the first of these steps began, duration_ms.

    Raises
    ------
    TraceError
        If the trace lacks these steps.
    """
    import pandas as pd

    events = _chosen(trace, first_step, steps)
    zero = int(events["start_ns"][events["kind"] == DEMAND][0])
    rows = [
        (
            span.lane,
            _mark(span, events),
            events[span.row]["expert"] if span.row != NOTHING else NOTHING,
            (span.start_ns - zero) / _NS_PER_MS,
            span.duration_ns / _NS_PER_MS,
        )
        for span in spans(events)
    ]
    frame = pd.DataFrame(rows, columns=["lane", "mark", "expert", "start_ms", "duration_ms"])
    expert = frame["expert"].astype("Int64")
    return frame.assign(expert=expert.mask(expert == NOTHING))


@on_paper
def timeline(trace: Trace, *, first_step: int = 0, steps: int = 4, ax: Axes | None = None) -> Axes:
    """Return the compute, waits and copies of some steps, on one time line.

    Raises
    ------
    TraceError
        If the trace lacks these steps.
    """
    table = timeline_table(trace, first_step=first_step, steps=steps)
    lanes = table["lane"].unique()
    axes = axes_on_paper(ax, 7.2, 1.7 + 0.4 * len(lanes))
    for height, lane in enumerate(lanes):
        for mark, colour in _MARKS.items():
            rows = table[(table["lane"] == lane) & (table["mark"] == mark)]
            bars = [*zip(rows["start_ms"], rows["duration_ms"], strict=True)]
            axes.broken_barh(bars, (height - 0.38, 0.76), color=colour, linewidth=0.6)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set_ylim(len(lanes) - 0.4, -1.0)  # downwards, with room for the numbers of steps
    axes.set_xlabel(f"ms since step {first_step} began")
    _name_steps(axes, trace, first_step, steps)
    patches = [Patch(color=colour, label=mark) for mark, colour in _MARKS.items()]
    legend_above(axes, patches)
    axes.spines["left"].set_visible(False)
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
    if span.label in MARKS or span.row == NOTHING:
        return span.label
    if span.lane.startswith(WAIT):
        return WAIT
    if span.lane.startswith(ON_HOST):
        return EXPERTS
    return GUESSED if events[span.row]["guess"] else DEMANDED


def _name_steps(axes: Axes, trace: Trace, first_step: int, steps: int) -> None:
    """Draw a line where a step begins, and its number inside the upper edge."""
    starts = trace.per_token()["start_ms"][first_step : first_step + steps]
    every = -(-len(starts) // _MOST_STEPS_NAMED)
    for place, (step, start) in enumerate(starts.items()):
        at = start - starts.iloc[0]
        axes.axvline(at, color=GREY, linewidth=0.8, linestyle=":", zorder=0, gid=GUIDE)
        if place % every == 0:
            axes.annotate(
                f"step {step}" if place == 0 else str(step),
                (at, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(2, -1),
                textcoords="offset points",
                verticalalignment="top",
                color=GREY,
            )
