"""Pictures of hits and misses: data frames in, Axes out. Computes nothing new."""

from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mixoff import tables
from mixoff.plots.style import GREY, axes_on_paper, legend_beside, looks, on_paper, rule

if TYPE_CHECKING:
    import pandas as pd

_BOUNDS = {"belady-bypass": ":", "belady": "--", "floor": "-."}  # policies that are no choice


@on_paper
def hit_rate(sweep: "pd.DataFrame", ax: Axes | None = None) -> Axes:
    """Return hit rate against slots of what `mixoff.sweep` gave, a line a policy.

    All layers are taken together. Bounds, which no policy can choose, are grey and dashed.
    """
    axes = axes_on_paper(ax, 6.6, 3.8)
    choices = looks()
    for policy, rows in tables.hit_rate(sweep).groupby("policy", sort=False):
        bound = _BOUNDS.get(policy)
        look: dict[str, Any] = {"color": GREY, "linestyle": bound, "zorder": 1}
        rows = rows.sort_values("slots")
        style = look if bound else next(choices)
        axes.plot(rows["slots"], rows["hit_rate"], label=policy, **style)
    axes.set(xlabel="slots per layer", ylabel="hit rate", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    rule(axes)
    legend_beside(axes)
    return axes
