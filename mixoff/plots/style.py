"""The look of all plots: colours, background, axes and legends. Knows no data.

Colours are those of Okabe and Ito, "Color universal design" (2008), which most people tell apart;
heat maps have cividis (Nuñez, Anderton and Renslow 2018), which is as even to the colour-blind.
The background is white and text dark in every theme of a notebook or style of matplotlib, and text
is large enough to be read when a plot is 300 pixels wide.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from itertools import cycle
from typing import Any, ParamSpec, TypeVar

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILION, PURPLE = "#E69F00", "#D55E00", "#CC79A7"
GREY, LIGHT, INK = "#555555", "#BBBBBB", "#1A1A1A"
HEAT = "cividis"  # the colour map of amounts

MARKERS = "osD^vPX"  # of lines, which differ in more than colour
GUIDE = "guide"  # the gid of marks that show no number of the table

_LOOK: dict[str, Any] = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "figure.dpi": 120,
    "image.cmap": HEAT,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), INK),
}


def on_paper(draw: Callable[P, T]) -> Callable[P, T]:
    """Return a function that draws the same in mixoff's look, whatever style the user has set."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        # Loads the backend first: what it sets must outlast the context below.
        plt.draw_if_interactive()  # type: ignore[no-untyped-call]
        with plt.style.context(["default", _LOOK]):
            return draw(*args, **kwargs)

    return drawn


def axes_on_paper(ax: Axes | None, width: float = 6.0, height: float = 3.8) -> Axes:
    """Return axes to draw on: the user's, or new ones on a figure of a size in inches.

    Their background becomes white and their text dark, the user's, too.
    """
    axes = plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax
    dress(axes)
    return axes


def panels(count: int, *, width: float, height: float) -> list[Axes]:
    """Return new axes below each other, sharing both scales, on a figure of a size in inches."""
    size = (width, height)
    grid = plt.subplots(
        count, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )[1]
    every = list(grid[:, 0])
    for axes in every:
        dress(axes)
    return every


def dress(axes: Axes) -> None:
    """Make the background of axes and of their figure white, and their text dark."""
    axes.figure.set_facecolor("white")
    axes.set_facecolor("white")
    axes.tick_params(which="both", color=INK, labelcolor=INK)  # of ticks made later, too
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(INK)
        axis.get_offset_text().set_color(INK)
    for spine in axes.spines.values():
        spine.set_edgecolor(INK)
    axes.title.set_color(INK)


def rule(axes: Axes, axis: Any = "both") -> None:
    """Draw a faint grid behind the data."""
    axes.grid(axis=axis, color=LIGHT, alpha=0.5, linewidth=0.8)
    axes.set_axisbelow(True)


def legend_beside(axes: Axes, title: str | None = None) -> None:
    """Place a legend to the right of the axes, off the data."""
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        title=title,
        alignment="left",
    )


def legend_above(
    axes: Axes, handles: Iterable[Artist] | None = None, *, columns: int | None = None
) -> None:
    """Place a legend above the axes, off the data; by default in three columns at most."""
    marks = list(handles) if handles else axes.get_legend_handles_labels()[0]
    axes.legend(
        handles=marks,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.01),
        ncols=columns or _columns(len(marks)),
        borderaxespad=0.0,
        columnspacing=1.2,
    )


def legend_atop(every: list[Axes]) -> None:
    """Place one legend for all panels, above them."""
    figure = every[0].get_figure(root=True)
    assert figure is not None
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=_columns(len(labels)))


def _columns(names: int) -> int:
    """Return the number of columns of a legend: three at most, with rows of equal length."""
    rows = -(-names // 3)
    return -(-names // max(1, rows))


def colour_bar(axes: Axes, drawn: Any, label: str, format: Any = None) -> None:
    """Place the colour scale of a heat map beside the axes."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    bar = figure.colorbar(drawn, ax=axes, label=label, format=format)
    bar.outline.set_visible(False)
    dress(bar.ax)


def looks() -> Iterator[dict[str, Any]]:
    """Yield the colour and the marker of one group after the other, without end."""
    colours = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
    for colour, marker in zip(cycle(colours), cycle(MARKERS), strict=False):
        yield {"color": colour, "marker": marker}
