"""Pictures of which experts are used, and how evenly. Computes nothing new."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mixoff import tables
from mixoff.plots.style import BLUE, GUIDE, INK, axes_on_paper, colour_bar, on_paper, rule
from mixoff.tables.usage import Of
from mixoff.trace import Trace


@on_paper
def usage(trace: Trace, *, of: Of = "demands", ax: Axes | None = None) -> Axes:
    """Return how often each expert was needed, a cell each: a row a layer, the first on top.

    `mixoff.tables.usage` tells what `of` is.

    Raises
    ------
    ConfigError
        If `of` isn't one of these.
    TraceError
        If there are no such steps.
    """
    table = tables.usage(trace, of=of)
    shares = table.pivot(index="layer", columns="expert", values="share")
    axes = axes_on_paper(ax, 6.0, 4.2)
    drawn = axes.imshow(shares, vmin=0, aspect="auto", interpolation="nearest")
    axes.set(xlabel="expert", ylabel="layer")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 5, 10]))
    colour_bar(axes, drawn, f"share of {of} that need it", PercentFormatter(1.0, decimals=0))
    return axes


@on_paper
def balance(trace: Trace, *, of: Of = "demands", ax: Axes | None = None) -> Axes:
    """Return how much more than the mean each layer's busiest expert is needed, a bar each.

    The dotted line is even use. `mixoff.tables.balance` tells the rest.

    Raises
    ------
    ConfigError
        If `of` isn't one of these.
    TraceError
        If there are no such steps.
    """
    table = tables.balance(trace, of=of)
    axes = axes_on_paper(ax, 6.0, 3.4)
    axes.bar(table["layer"], table["load"], color=BLUE)
    axes.axhline(1, color=INK, linestyle=":", gid=GUIDE)
    axes.set(xlabel="layer", ylabel="busiest expert / mean", xlim=(-0.6, len(table) - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    rule(axes, "y")
    return axes


@on_paper
def divergence(traces: Mapping[str, Trace], ax: Axes | None = None) -> Axes:
    """Return how differently each pair of recordings uses experts, a cell each, with its number.

    On the diagonal are two passages of one kind. `mixoff.tables.divergence` tells the rest.

    Raises
    ------
    ConfigError
        If there is no recording, or their models don't have as many layers and experts.
    TraceError
        If one has fewer than two steps.
    """
    table = tables.divergence(traces)
    names = list(traces)
    bits = table["bits"].to_numpy().reshape(len(names), len(names))
    axes = axes_on_paper(ax, 1.6 + 1.0 * max(4, len(names)), 1.0 + 0.8 * max(4, len(names)))
    drawn = axes.imshow(bits, vmin=0, aspect="auto")
    for (row, column), value in np.ndenumerate(bits):
        ink = "black" if value > bits.max() / 2 else "white"
        axes.text(column, row, f"{value:.2f}", color=ink, ha="center", va="center")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    colour_bar(axes, drawn, "divergence, bits")
    return axes
