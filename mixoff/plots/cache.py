"""Pictures of hits and misses: data frames in, Axes out. Computes nothing new."""

from itertools import cycle
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mixoff.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, new_axes

if TYPE_CHECKING:
    import pandas as pd

_BOUNDS = {"belady-bypass": ":", "belady": "--", "floor": "-."}  # policies that are no choice


def hit_rate(table: "pd.DataFrame", ax: Axes | None = None) -> Axes:
    """Return hit rate against slots of what `mixoff.sweep` gave, a line a policy.

    All layers are taken together. Bounds, which no policy can choose, are grey and dashed.
    """
    axes = ax or new_axes()
    sums = table.groupby(["policy", "slots"], sort=False)[["hits", "misses"]].sum()
    rates = (sums["hits"] / (sums["hits"] + sums["misses"])).unstack("slots").sort_index(axis=1)
    colours = cycle((BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY))
    markers = cycle("osD^vP")
    for policy in table["policy"].unique():
        bound = _BOUNDS.get(policy)
        style: dict[str, Any] = (
            {"color": GREY, "linestyle": bound, "zorder": 1}
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
