"""A picture of how soon experts are needed again. Computes nothing new."""

from itertools import cycle

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mixoff import tables
from mixoff.plots.style import HEAT, MARKERS, axes_on_paper, legend_beside, on_paper, rule
from mixoff.trace import Trace

_DARKEST, _LIGHTEST = 0.0, 0.8  # of the colour map: what is lighter is lost on white paper


@on_paper
def reuse_distance(trace: Trace, *, groups: int = 4, ax: Axes | None = None) -> Axes:
    """Return which share of needed experts comes back within how many others, a line some layers.

    Deeper layers are lighter. `mixoff.tables.reuse_distance` tells what is counted.

    Raises
    ------
    ConfigError
        If groups isn't 1 or more.
    """
    axes = axes_on_paper(ax, 6.6, 3.8)
    table = tables.reuse_distance(trace, groups=groups)
    names = table["layers"].unique()
    shades = colormaps[HEAT](np.linspace(_DARKEST, _LIGHTEST, len(names)))
    for name, shade, marker in zip(names, shades, cycle(MARKERS), strict=False):
        rows = table[table["layers"] == name]
        axes.plot(rows["others"], rows["share"], color=shade, marker=marker, label=name)
    axes.set(xlabel="others needed since", ylabel="share that comes back", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    rule(axes)
    legend_beside(axes, title="layers")
    return axes
