"""Pictures of hits and misses: data frames in, Axes out. Computes nothing new."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mixoff.errors import ConfigError
from mixoff.plots.style import (
    BLUE,
    GREEN,
    GREY,
    GUIDE,
    INK,
    LIGHT,
    MARKERS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    axes_on_paper,
    legend_atop,
    legend_beside,
    looks,
    on_paper,
    panels,
    rule,
)
from mixoff.policies.base import Policy
from mixoff.policies.registry import policy_name
from mixoff.simulate.replay import FLOOR, sweep
from mixoff.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

_BOUNDS = {"belady-bypass": ":", "belady": "--", FLOOR: "-."}  # policies that are no choice
_COLOURS = {"lru": BLUE, "lfu": GREEN, "fifo": PURPLE, "random": ORANGE, "static": SKY}


def hit_rate_table(sweep: "pd.DataFrame") -> "pd.DataFrame":
    """Return the hit rate of each policy and size of what `mixoff.sweep` gave, of all layers.

    Columns: policy, slots, hit_rate.
    """
    return _rates(sweep, ["policy", "slots"])


@on_paper
def hit_rate(sweep: "pd.DataFrame", ax: Axes | None = None) -> Axes:
    """Return hit rate against slots of what `mixoff.sweep` gave, a line a policy.

    All layers are taken together. Bounds, which no policy can choose, are grey and dashed.
    """
    axes = axes_on_paper(ax, 6.6, 3.8)
    for policy, look, rows in _by_policy(hit_rate_table(sweep)):
        rows = rows.sort_values("slots")  # which the sweep has in any order
        axes.plot(rows["slots"], rows["hit_rate"], label=policy, **look)
    _scale_rates(axes)
    axes.set_xlabel("slots per layer")
    legend_beside(axes)
    return axes


def layer_hit_rate_table(
    sweep: "pd.DataFrame", *, slots: Iterable[int] | None = None
) -> "pd.DataFrame":
    """Return the hit rate of each layer, policy and some sizes of what `mixoff.sweep` gave.

    Columns: slots, policy, layer, hit_rate.

    Parameters
    ----------
    slots
        Which sizes, in this order; by default about a quarter, a half and three quarters of the
        largest.

    Raises
    ------
    ConfigError
        If one of them isn't in the sweep.
    """
    known = sorted(map(int, sweep["slots"].unique()))
    quarters = (min(known, key=lambda size: abs(size - known[-1] * n / 4)) for n in (1, 2, 3))
    wanted = [*dict.fromkeys(quarters)] if slots is None else list(slots)
    for size in wanted:
        _check_known("slots", size, known)
    rates = _rates(sweep, ["slots", "policy", "layer"])
    rank = rates["slots"].map({size: place for place, size in enumerate(wanted)})
    return rates[rank.notna()].iloc[rank.dropna().argsort(kind="stable")].reset_index(drop=True)


@on_paper
def layer_hit_rate(sweep: "pd.DataFrame", *, slots: Iterable[int] | None = None) -> list[Axes]:
    """Return hit rate against layer of what `mixoff.sweep` gave, axes for each of some sizes.

    `mixoff.plots.layer_hit_rate_table` tells which.

    Raises
    ------
    ConfigError
        If one of the sizes isn't in the sweep.
    """
    table = layer_hit_rate_table(sweep, slots=slots)
    sizes = table["slots"].unique()
    every = panels(len(sizes), width=6.0, height=1.4 + 1.5 * len(sizes))
    for axes, size in zip(every, sizes, strict=True):
        for policy, look, rows in _by_policy(table[table["slots"] == size]):
            axes.plot(rows["layer"], rows["hit_rate"], label=policy, markersize=4, **look)
        _scale_rates(axes)
        axes.set_title(f"{size} slots per layer", loc="left")
    every[-1].set_xlabel("layer")
    legend_atop(every)
    return every


def recovered_table(
    sweep: "pd.DataFrame", slots: int, *, base: str = FLOOR, bound: str = "belady-bypass"
) -> "pd.DataFrame":
    """Return how much of what could be won each policy wins with so many slots, the best first.

    Columns: policy, hit_rate, recovered: (hit rate - base's) / (bound's - base's), of all layers
    together. It is 1 for the bound and below 0 for what is worse than the base; missing if the
    bound hits no more than the base. Neither these two nor the floor have a row.

    Parameters
    ----------
    sweep
        What `mixoff.sweep` gave, with base and bound among the policies.
    base
        The policy that wins nothing: by default slots / experts; "lru" tells what is won beyond it.
    bound
        The policy that wins all: "belady" bounds those that must admit what they fetch.

    Raises
    ------
    ConfigError
        If the sweep lacks one of these.
    """
    _check_known("slots", slots, sorted(map(int, sweep["slots"].unique())))
    of_size = _rates(sweep[sweep["slots"] == slots], ["policy"])
    for policy in (base, bound):
        _check_known("policy", policy, of_size["policy"].tolist())
    rates = of_size.set_index("policy")["hit_rate"]
    gap = rates[bound] - rates[base]
    won = (of_size["hit_rate"] - rates[base]) / (gap if gap > 0 else float("nan"))
    choices = of_size.assign(recovered=won)[~of_size["policy"].isin({base, bound, FLOOR})]
    return choices.sort_values("hit_rate", ascending=False, kind="stable").reset_index(drop=True)


@on_paper
def recovered(
    sweep: "pd.DataFrame",
    slots: int,
    *,
    base: str = FLOOR,
    bound: str = "belady-bypass",
    ax: Axes | None = None,
) -> Axes:
    """Return how much of what could be won each policy wins with so many slots, a bar each.

    A policy of one's own is vermilion, and the bound for caches that must admit grey, if it isn't
    the one. `mixoff.plots.recovered_table` tells the rest.

    Raises
    ------
    ConfigError
        If the sweep lacks these slots, base or bound.
    """
    table = recovered_table(sweep, slots, base=base, bound=bound)
    axes = axes_on_paper(ax, 6.0, 1.5 + 0.45 * len(table))
    colours = [_bar_colour(policy) for policy in table["policy"]]
    axes.barh(table["policy"], table["recovered"], color=colours)
    for height, share in enumerate(table["recovered"]):
        end = (max(0.0, share), height)  # right of the line at 0, too, where no names are
        axes.annotate(_percent(share), end, (4, 0), textcoords="offset points", va="center")
    axes.axvline(0, color=INK, linewidth=1, gid=GUIDE)
    axes.margins(x=0.15)
    axes.set_xlim(right=max(axes.get_xlim()[1], 1.05))  # to the bound, however little is won
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(f"won of the way from {base} to {bound}, {slots} slots")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    rule(axes, "x")
    return axes


def kind_hit_rate_table(
    traces: Mapping[str, Trace], *, policy: str | Policy = "lru"
) -> "pd.DataFrame":
    """Return what caches of each size would have hit in each recording, of all layers.

    Columns: kind ("floor" for slots / experts, the last one), slots, hit_rate.

    Parameters
    ----------
    traces
        The recording of each kind of text, such as `mixoff.measure.record_texts` gives.

    Raises
    ------
    ConfigError
        If there is no such policy, or no recording.
    """
    import pandas as pd

    if not traces:
        raise ConfigError("traces: there is none: give one, or more.")
    swept = [sweep(trace, policy).assign(kind=kind) for kind, trace in traces.items()]
    swept.append(sweep(next(iter(traces.values())), FLOOR).assign(kind=FLOOR))
    return _rates(pd.concat(swept), ["kind", "slots"])


@on_paper
def kind_hit_rate(
    traces: Mapping[str, Trace], *, policy: str | Policy = "lru", ax: Axes | None = None
) -> Axes:
    """Return hit rate against slots of caches of one policy, a line a kind of text, and the floor.

    Raises
    ------
    ConfigError
        If there is no such policy, or no recording.
    """
    axes = axes_on_paper(ax, 6.6, 3.8)
    choices = looks()
    for kind, rows in kind_hit_rate_table(traces, policy=policy).groupby("kind", sort=False):
        look = _bound_look(FLOOR) if kind == FLOOR else next(choices)
        axes.plot(rows["slots"], rows["hit_rate"], label=kind, **look)
    _scale_rates(axes)
    axes.set(xlabel="slots per layer", ylabel=f"hit rate of {policy_name(policy)}")
    legend_beside(axes)
    return axes


def _rates(sweep: "pd.DataFrame", by: list[str]) -> "pd.DataFrame":
    sums = sweep.groupby(by, sort=False)[["hits", "misses"]].sum()
    rates = sums["hits"] / (sums["hits"] + sums["misses"])
    return rates.rename("hit_rate").reset_index()


def _check_known(what: str, given: object, known: list[int] | list[str]) -> None:
    if given not in known:
        raise ConfigError(f"{what}={given!r}: the sweep has {', '.join(map(str, known))}.")


def _percent(share: float) -> str:
    if share != share:  # NaN
        return "nothing could be won"
    return f"{share:.0%}".replace("-", "\N{MINUS SIGN}")


def _bar_colour(policy: str) -> str:
    if policy in _BOUNDS:
        return LIGHT
    return BLUE if _kind_of(policy) in _COLOURS else VERMILION


def _kind_of(policy: str) -> str:
    """Return a policy's name without its settings."""
    return policy.partition("(")[0]


def _by_policy(table: "pd.DataFrame") -> Iterator[tuple[str, dict[str, Any], "pd.DataFrame"]]:
    """Yield each policy, how its line looks, and its rows: the same policy, the same colour."""
    own = cycle((VERMILION, INK))
    markers = cycle(MARKERS)
    for policy, rows in table.groupby("policy", sort=False):
        if policy in _BOUNDS:
            yield policy, _bound_look(policy), rows
        else:
            colour = _COLOURS.get(_kind_of(policy)) or next(own)
            yield policy, {"color": colour, "marker": next(markers)}, rows


def _bound_look(bound: str) -> dict[str, Any]:
    return {"color": GREY, "linestyle": _BOUNDS[bound], "zorder": 1}


def _scale_rates(axes: Axes) -> None:
    axes.set(ylim=(0, 1.02), ylabel="hit rate")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    rule(axes)
