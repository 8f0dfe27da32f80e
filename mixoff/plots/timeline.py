"""A trace as a time line: copies against compute. Computes nothing new."""

from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mixoff.errors import TraceError
from mixoff.plots.style import BLUE, GREEN, GREY, LIGHT, ORANGE, VERMILION, new_axes
from mixoff.trace import Trace
from mixoff.trace.lanes import EXPERTS, TRUNK, WAIT, Span, spans
from mixoff.trace.tables import DEMAND, NOTHING, Rows

_MARKS = {  # of a time line, in the order of its legend
    TRUNK: LIGHT,
    EXPERTS: BLUE,
    WAIT: VERMILION,
    "copy, demanded": ORANGE,
    "copy, guessed": GREEN,
}
_NS_PER_MS = 1e6
_MOST_STEPS_NAMED = 16


def timeline(trace: Trace, *, first_step: int = 0, steps: int = 4, ax: Axes | None = None) -> Axes:
    """Return copies against compute: what was computed, waited for and copied, on one time line.

    Raises
    ------
    TraceError
        If the trace has no such steps.
    """
    events = _chosen(trace, first_step, steps)
    lanes = {lane: [*own] for lane, own in groupby(spans(events), key=lambda span: span.lane)}
    axes = ax or new_axes(10, 1.6 + 0.4 * len(lanes))
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
        axes.axvline(at, color=GREY, linewidth=0.6, linestyle=":", zorder=0)
        if place % every == 0:
            axes.annotate(
                f"step {step}" if place == 0 else str(step),
                (at, 1.01),
                xycoords=("data", "axes fraction"),
                fontsize="small",
                color=GREY,
            )
