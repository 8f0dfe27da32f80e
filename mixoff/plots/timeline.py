"""A trace as a time line: copies against compute. Computes nothing new."""

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mixoff import tables
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
from mixoff.tables.timeline import DEMANDED, GUESSED
from mixoff.trace import Trace
from mixoff.trace.lanes import EXPERTS, TRUNK, WAIT

_MARKS = {TRUNK: LIGHT, EXPERTS: BLUE, WAIT: VERMILION, DEMANDED: ORANGE, GUESSED: GREEN}
_MOST_STEPS_NAMED = 8


@on_paper
def timeline(trace: Trace, *, first_step: int = 0, steps: int = 4, ax: Axes | None = None) -> Axes:
    """Return copies against compute: what was computed, waited for and copied, on one time line.

    Raises
    ------
    TraceError
        If the trace has no such steps.
    """
    table = tables.timeline(trace, first_step=first_step, steps=steps)
    lanes = table["lane"].unique()
    axes = axes_on_paper(ax, 7.2, 1.7 + 0.4 * len(lanes))
    for height, lane in enumerate(lanes):
        for mark, colour in _MARKS.items():
            rows = table[(table["lane"] == lane) & (table["mark"] == mark)]
            bars = [*zip(rows["start_ms"], rows["duration_ms"], strict=True)]
            axes.broken_barh(bars, (height - 0.38, 0.76), color=colour, linewidth=0.6)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set_ylim(len(lanes) - 0.4, -1.0)  # from above, with room for steps' numbers
    axes.set_xlabel(f"ms since step {first_step} began")
    _name_steps(axes, trace, first_step, steps)
    patches = [Patch(color=colour, label=mark) for mark, colour in _MARKS.items()]
    legend_above(axes, patches)
    axes.spines["left"].set_visible(False)
    return axes


def _name_steps(axes: Axes, trace: Trace, first_step: int, steps: int) -> None:
    """Draw where steps begin, and inside the picture's upper edge their numbers."""
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
