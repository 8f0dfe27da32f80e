"""A plot of reuse distances. Computes nothing new."""

from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mixoff.errors import ConfigError
from mixoff.plots.style import HEAT, MARKERS, axes_on_paper, legend_beside, on_paper, rule
from mixoff.simulate.reuse import reuse_distances
from mixoff.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

_DARKEST, _LIGHTEST = 0.0, 0.8  # of the colour map: lighter lines are lost on white


def reuse_distance_table(trace: Trace, *, groups: int = 4) -> "pd.DataFrame":
    """Return the share of needed experts that return within each number of others, by layers.

    Columns: layers ("0-1"), others, share: of the experts that these layers needed, those that had
    been needed before with at most so many other experts demanded since, companions included, as
    `most` of `mixoff.simulate.reuse_distances` counts them. LRU with one slot more than `others`
    hits at least this share, without the hits of its first residents. An expert that was never
    needed before is within no distance.

    Parameters
    ----------
    groups
        In how many groups of neighbouring layers are taken together; at most one for each layer.

    Raises
    ------
    ConfigError
        If groups isn't 1 or more.
    """
    import pandas as pd

    if groups < 1:
        raise ConfigError(f"groups={groups}: give 1 or more.")
    distances = reuse_distances(trace)
    names = _group_names(trace.num_layers, min(groups, trace.num_layers))  # [L]
    needed = names[distances["layer"].to_numpy()]
    most = distances["most"].to_numpy(dtype=float, na_value=np.inf)
    rows = [
        (name, others, float((most[needed == name] <= others).mean()))
        for name in dict.fromkeys(needed[np.argsort(distances["layer"], kind="stable")])
        for others in range(trace.num_experts)
    ]
    return pd.DataFrame(rows, columns=["layers", "others", "share"])


@on_paper
def reuse_distance(trace: Trace, *, groups: int = 4, ax: Axes | None = None) -> Axes:
    """Return the share of needed experts that return within each number of others, by layers.

    There is a line for each group of layers, the lighter, the deeper.
    `mixoff.plots.reuse_distance_table` has the definition.

    Raises
    ------
    ConfigError
        If groups isn't 1 or more.
    """
    axes = axes_on_paper(ax, 6.6, 3.8)
    table = reuse_distance_table(trace, groups=groups)
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


def _group_names(layers: int, groups: int) -> "np.ndarray[tuple[int], np.dtype[np.object_]]":
    """Return the name of each layer's group."""
    parts = [part.tolist() for part in np.array_split(np.arange(layers), groups)]
    named = [
        str(part[0]) if part[0] == part[-1] else f"{part[0]}-{part[-1]}"
        for part in parts
        for _ in part
    ]
    return np.array(named, dtype=object)
