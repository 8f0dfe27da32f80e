"""How mixoff's pictures look: colours, paper, axes and legends. Knows no data.

Colours are those of Okabe and Ito, "Color universal design" (2008), which most people tell apart;
heat maps have cividis (Nuñez, Anderton and Renslow 2018), which is as even to the colour-blind.
Paper is white and ink dark whatever theme a notebook or matplotlib style has, and letters are large
enough to be read when a picture is 300 pixels wide, so that it reads the same everywhere.
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

MARKERS = "osD^vPX"  # of lines, so that colour isn't all that tells them apart
GUIDE = "guide"  # the gid of marks that show no numbers of their own: name them so

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
    """Return a function that draws as the given one does, in mixoff's look and not the user's."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        # It loads the backend, whose settings would end with the context.
        plt.draw_if_interactive()  # type: ignore[no-untyped-call]
        with plt.style.context(["default", _LOOK]):
            return draw(*args, **kwargs)

    return drawn


def axes_on_paper(ax: Axes | None, width: float = 6.0, height: float = 3.8) -> Axes:
    """Return axes to draw on: the given ones, or new ones on a figure of a size in inches.

    Paper becomes white, the given one's, too; ticks that matplotlib makes later are dark.
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
    """Make axes and their figure's paper white, and what is written on them dark."""
    axes.figure.set_facecolor("white")
    axes.set_facecolor("white")
    axes.tick_params(which="both", color=INK, labelcolor=INK)  # ticks are made when they're drawn
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
    """Name the marks to the right of the axes, where no data are."""
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
    """Name the marks above the axes, where no data are; by default in three columns at most."""
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
    """Name the marks of panels once, above all of them."""
    figure = every[0].get_figure(root=True)
    assert figure is not None
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=_columns(len(labels)))


def _columns(names: int) -> int:
    """Return in how many columns so many names stand: three at most, and rows alike."""
    rows = -(-names // 3)
    return -(-names // max(1, rows))


def colour_bar(axes: Axes, drawn: Any, label: str, format: Any = None) -> None:
    """Tell beside the axes which amount each colour of a heat map is."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    bar = figure.colorbar(drawn, ax=axes, label=label, format=format)
    bar.outline.set_visible(False)
    dress(bar.ax)


def looks() -> Iterator[dict[str, Any]]:
    """Yield for ever how lines of several groups differ: in colour and marker at once."""
    colours = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
    for colour, marker in zip(cycle(colours), cycle(MARKERS), strict=False):
        yield {"color": colour, "marker": marker}
