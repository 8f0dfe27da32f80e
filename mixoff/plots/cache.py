"""Plots of hits and misses: data frames in, Axes out. Computes nothing new."""

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

_BOUNDS = {"belady-bypass": ":", "belady": "--", FLOOR: "-."}  # what no live cache can run
_COLOURS = {"lru": BLUE, "lfu": GREEN, "fifo": PURPLE, "random": ORANGE, "static": SKY}


def hit_rate_table(sweep: "pd.DataFrame") -> "pd.DataFrame":
    """Return the hit rate of each policy and number of slots, over all layers of a sweep.

    Columns: policy, slots, hit_rate.
    """
    return _rates(sweep, ["policy", "slots"])


@on_paper
def hit_rate(sweep: "pd.DataFrame", ax: Axes | None = None) -> Axes:
    """Return hit rate against slots of a sweep, a line a policy, over all layers.

    Bounds, which need future demands, and the floor are grey and dashed.
    """
    axes = axes_on_paper(ax, 6.6, 3.8)
    for policy, look, rows in _by_policy(hit_rate_table(sweep)):
        rows = rows.sort_values("slots")  # a sweep has them in the order that was given
        axes.plot(rows["slots"], rows["hit_rate"], label=policy, **look)
    _scale_rates(axes)
    axes.set_xlabel("slots per layer")
    legend_beside(axes)
    return axes


def layer_hit_rate_table(
    sweep: "pd.DataFrame", *, slots: Iterable[int] | None = None
) -> "pd.DataFrame":
    """Return the hit rate of each layer and policy of a sweep, for some numbers of slots.

    Columns: slots, policy, layer, hit_rate.

    Parameters
    ----------
    slots
        These numbers, in this order; by default about a quarter, a half and three quarters of the
        largest.

    Raises
    ------
    ConfigError
        If one of them isn't in the sweep.
    """
    known = sorted(map(int, sweep["slots"].unique()))
    quarters = (min(known, key=lambda count: abs(count - known[-1] * n / 4)) for n in (1, 2, 3))
    wanted = [*dict.fromkeys(quarters)] if slots is None else list(slots)
    for count in wanted:
        _check_known("slots", count, known)
    rates = _rates(sweep, ["slots", "policy", "layer"])
    rank = rates["slots"].map({count: place for place, count in enumerate(wanted)})
    return rates[rank.notna()].iloc[rank.dropna().argsort(kind="stable")].reset_index(drop=True)


@on_paper
def layer_hit_rate(sweep: "pd.DataFrame", *, slots: Iterable[int] | None = None) -> list[Axes]:
    """Return hit rate against layer of a sweep, axes for each of some numbers of slots.

    `mixoff.plots.layer_hit_rate_table` describes which.

    Raises
    ------
    ConfigError
        If one of them isn't in the sweep.
    """
    table = layer_hit_rate_table(sweep, slots=slots)
    counts = table["slots"].unique()
    every = panels(len(counts), width=6.0, height=1.4 + 1.5 * len(counts))
    for axes, count in zip(every, counts, strict=True):
        for policy, look, rows in _by_policy(table[table["slots"] == count]):
            axes.plot(rows["layer"], rows["hit_rate"], label=policy, markersize=4, **look)
        _scale_rates(axes)
        axes.set_title(f"{count} slots per layer", loc="left")
    every[-1].set_xlabel("layer")
    legend_atop(every)
    return every


def recovered_table(
    sweep: "pd.DataFrame", slots: int, *, base: str = FLOOR, bound: str = "belady-bypass"
) -> "pd.DataFrame":
    """Return each policy's share of the gap between a base and a bound, the best first.

    Columns: policy, hit_rate, recovered: (hit rate - base's) / (bound's - base's), over all layers.
    It is 1 for the bound and negative for a policy that is worse than the base; missing if the
    bound hits no more than the base. Neither these two nor the floor have a row.

    Parameters
    ----------
    sweep
        What `mixoff.sweep` returned, with base and bound among the policies.
    slots
        The number of slots to compare at.
    base
        The policy whose share is 0: by default the floor, slots / experts.
    bound
        The policy whose share is 1: "belady" is the bound of those that must admit what they fetch.

    Raises
    ------
    ConfigError
        If the sweep lacks one of these three.
    """
    _check_known("slots", slots, sorted(map(int, sweep["slots"].unique())))
    of_size = _rates(sweep[sweep["slots"] == slots], ["policy"])
    for policy in (base, bound):
        _check_known("policy", policy, of_size["policy"].tolist())
    rates = of_size.set_index("policy")["hit_rate"]
    gap = rates[bound] - rates[base]
    share = (of_size["hit_rate"] - rates[base]) / (gap if gap > 0 else float("nan"))
    choices = of_size.assign(recovered=share)[~of_size["policy"].isin({base, bound, FLOOR})]
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
    """Return each policy's share of the gap between a base and a bound, a bar each.

    Policies of the user are vermilion, and bounds are grey. `mixoff.plots.recovered_table` has the
    definition.

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
        end = (max(0.0, share), height)  # right of the line at 0, too, off the names
        axes.annotate(_percent(share), end, (4, 0), textcoords="offset points", va="center")
    axes.axvline(0, color=INK, linewidth=1, gid=GUIDE)
    axes.margins(x=0.15)
    axes.set_xlim(right=max(axes.get_xlim()[1], 1.05))  # to the bound, however small the shares
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(f"share of the gap from {base} to {bound}, {slots} slots")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    rule(axes, "x")
    return axes


def kind_hit_rate_table(
    traces: Mapping[str, Trace], *, policy: str | Policy = "lru"
) -> "pd.DataFrame":
    """Return the hit rate of each number of slots in each recording, over all layers.

    Columns: kind (the last one is "floor": slots / experts), slots, hit_rate.

    Parameters
    ----------
    traces
        The recording of each kind of text, such as `mixoff.measure.record_texts` returns.

    Raises
    ------
    ConfigError
        If there is no such policy, or no recording.
    """
    import pandas as pd

    if not traces:
        raise ConfigError("traces={}: give one recording or more.")
    swept = [sweep(trace, policy).assign(kind=kind) for kind, trace in traces.items()]
    swept.append(sweep(next(iter(traces.values())), FLOOR).assign(kind=FLOOR))
    return _rates(pd.concat(swept), ["kind", "slots"])


@on_paper
def kind_hit_rate(
    traces: Mapping[str, Trace], *, policy: str | Policy = "lru", ax: Axes | None = None
) -> Axes:
    """Return hit rate against slots for one policy, a line a kind of text, and the floor.

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


def _check_known(name: str, value: object, known: list[int] | list[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name}={value!r}: the sweep has {', '.join(map(str, known))}.")


def _percent(share: float) -> str:
    if share != share:  # NaN
        return "no gap to recover"
    return f"{share:.0%}".replace("-", "\N{MINUS SIGN}")


def _bar_colour(policy: str) -> str:
    if policy in _BOUNDS:
        return LIGHT
    return BLUE if _kind_of(policy) in _COLOURS else VERMILION


def _kind_of(policy: str) -> str:
    """Return a policy's name without its settings."""
    return policy.partition("(")[0]


def _by_policy(table: "pd.DataFrame") -> Iterator[tuple[str, dict[str, Any], "pd.DataFrame"]]:
    """Yield each policy, the look of its line, and its rows: a policy keeps its colour."""
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
