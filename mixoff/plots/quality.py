"""Plots of quality by bits, of memory, of recall and of speed. Computes nothing new."""

from typing import TYPE_CHECKING

import numpy as np
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
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    axes_on_paper,
    legend_above,
    legend_beside,
    looks,
    on_paper,
    rule,
)
from mixoff.units import format_nbytes, parse_nbytes

if TYPE_CHECKING:
    import pandas as pd

CHANCE = "chance"
_USUAL_BITS = (16, 8, 4, 3, 2)
_COSTS = {"loss": "loss, nats a token", "kl": "KL divergence, nats a token"}
_PARTS = {  # of a memory plan: its label, and its colour
    "slots": ("experts in slots", BLUE),
    "staging": ("staging buffers", SKY),
    "non_expert": ("non-expert", GREEN),
    "kv_cache": ("KV cache", ORANGE),
    "workspace": ("workspace", PURPLE),
    "records": ("experts kept", VERMILION),
    "bounce": ("bounce buffers", LIGHT),
    "experts": ("all experts", GREY),
}


def quality_table(measured: "pd.DataFrame", cost: str = "loss") -> "pd.DataFrame":
    """Return size and cost of each scheme, the smallest first, and whether it is on the frontier.

    Columns: attention and experts, their bits; nbytes; is_best, whether all others of at most
    its size cost more; and the cost.

    Parameters
    ----------
    measured
        What `mixoff.measure.quality` returned, or any frame with the columns attention, experts,
        nbytes and the cost.
    cost
        The column of a scheme's cost, the lower the better.
    """
    _require(measured, ("attention", "experts", "nbytes", cost))
    table = measured.sort_values(["nbytes", cost], kind="stable").reset_index(drop=True)
    is_best = table[cost] < table[cost].cummin().shift(fill_value=float("inf"))
    return table.assign(is_best=is_best)[["attention", "experts", "nbytes", "is_best", cost]]


@on_paper
def quality(measured: "pd.DataFrame", cost: str = "loss", ax: Axes | None = None) -> Axes:
    """Return cost against size, a point a scheme, a colour for each number of bits of attention.

    Schemes on the frontier, of which none is both smaller and better, are labelled:
    attention/experts, in bits.
    """
    table = quality_table(measured, cost)
    axes = axes_on_paper(ax, 6.6, 4.2)
    every = sorted({*_USUAL_BITS, *table["attention"]}, reverse=True)
    for bits, look in zip(every, looks(), strict=False):  # the same in all pictures
        points = table[table["attention"] == bits]
        if len(points):
            label = f"attention in {bits} bits"
            axes.scatter(points["nbytes"], points[cost], s=48, zorder=3, label=label, **look)
    best = table[table["is_best"]]
    axes.step(best["nbytes"], best[cost], where="post", color=LIGHT, zorder=1, gid=GUIDE)
    axes.set_xscale("log")
    axes.margins(x=0.18, y=0.16)
    _name_points(axes, best, cost)
    _label_sizes(axes, table["nbytes"].max())
    axes.set_ylabel(_COSTS.get(cost, cost))
    rule(axes)
    legend_above(axes, columns=2)
    return axes


def memory_table(plan: "pd.DataFrame") -> "pd.DataFrame":
    """Return the bytes of each part in its tier, of what `MemoryPlan.to_frame` returned.

    Columns: tier, part, nbytes. Parts of 0 bytes are left out.
    """
    _require(plan, ("tier", "part", "nbytes"))
    return plan.loc[plan["nbytes"] > 0, ["tier", "part", "nbytes"]].reset_index(drop=True)


@on_paper
def memory(plan: "pd.DataFrame", ax: Axes | None = None) -> Axes:
    """Return the bytes in each tier, a bar a tier, a colour a part, of `MemoryPlan.to_frame`."""
    table = memory_table(plan)
    tiers = [*table["tier"].unique()]
    axes = axes_on_paper(ax, 7.0, 1.9 + 0.5 * len(tiers))
    ends = np.zeros(len(tiers))
    for part, rows in table.groupby("part", sort=False):
        name, colour = _PARTS.get(str(part), (str(part), LIGHT))
        heights = [tiers.index(tier) for tier in rows["tier"]]
        axes.barh(heights, rows["nbytes"], left=ends[heights], color=colour, label=name)
        ends[heights] += rows["nbytes"]
    for height, end in enumerate(ends):
        axes.annotate(
            f" {format_nbytes(end)}", (end, height), va="center", color=INK, annotation_clip=False
        )
    axes.set_yticks(range(len(tiers)), tiers)
    axes.invert_yaxis()
    _label_round_sizes(axes, ends.max())
    axes.set_xlim(0, ends.max() * 1.25)  # beyond which the totals stand
    legend_above(axes)
    return axes


def recall_table(measured: "pd.DataFrame") -> "pd.DataFrame":
    """Return the mean recall over layers by the number of guesses, and chance.

    Columns: predictor; layers_ahead, missing for chance; guesses; recall. Chance is the last
    predictor: the guesses' share of all experts.

    Parameters
    ----------
    measured
        What `mixoff.measure.recall` returned.
    """
    import pandas as pd

    keys = ["predictor", "layers_ahead", "guesses"]
    _require(measured, (*keys, "recall", CHANCE))
    means = measured.groupby(keys, sort=False)["recall"].mean().reset_index()
    chance = measured.groupby("guesses")[CHANCE].first().rename("recall").reset_index()
    table = pd.concat([means, chance.assign(predictor=CHANCE)], ignore_index=True)
    return table.astype({"layers_ahead": "Int64"})[[*keys, "recall"]]


@on_paper
def recall(measured: "pd.DataFrame", ax: Axes | None = None) -> Axes:
    """Return recall against the number of guesses, a line for each predictor and distance.

    Chance, the guesses' share of all experts, is grey and dashed. A distance of 0 is a control: the
    layer's own router.
    """
    table = recall_table(measured)
    axes = axes_on_paper(ax, 6.6, 3.8)
    guessed = table[table["predictor"] != CHANCE]
    several = guessed["predictor"].nunique() > 1
    lines = guessed.groupby(["predictor", "layers_ahead"], sort=False)
    for ((predictor, ahead), rows), look in zip(lines, looks(), strict=False):
        label = f"{predictor}, {_ahead(ahead)}" if several else _ahead(ahead)
        axes.plot(rows["guesses"], rows["recall"], label=label, **look)
    chance = table[table["predictor"] == CHANCE]
    axes.plot(chance["guesses"], chance["recall"], color=GREY, linestyle="--", label=CHANCE)
    axes.set(xlabel="experts guessed", ylabel="recall", ylim=(0, 1.03))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    rule(axes)
    legend_beside(axes)
    return axes


def relative_speed_table(measured: "pd.DataFrame") -> "pd.DataFrame":
    """Return each algorithm's speed over that of the first, for each machine.

    Columns: machine, algorithm, relative_speed, of the median of several rounds.

    Parameters
    ----------
    measured
        A frame with the columns machine, algorithm and tokens_per_second, such as
        `mixoff.measure.ablation_speed` returned, with the column machine added.

    Raises
    ------
    ConfigError
        If a machine has no row of the first algorithm.
    """
    keys = ["machine", "algorithm"]
    _require(measured, (*keys, "tokens_per_second"))
    medians = measured.groupby(keys, sort=False)["tokens_per_second"].median().reset_index()
    first = measured["algorithm"].iloc[0]
    whole = medians[medians["algorithm"] == first].set_index("machine")["tokens_per_second"]
    if lacking := sorted({*medians["machine"]} - {*whole.index}):
        raise ConfigError(f"{', '.join(lacking)}: {first!r} was not measured there: add it.")
    relative = medians["tokens_per_second"] / medians["machine"].map(whole)
    return medians[keys].assign(relative_speed=relative)


@on_paper
def relative_speed(measured: "pd.DataFrame", ax: Axes | None = None) -> Axes:
    """Return each algorithm's speed over that of the first, in groups, a colour a machine."""
    table = relative_speed_table(measured)
    algorithms, machines = [*table["algorithm"].unique()], [*table["machine"].unique()]
    axes = axes_on_paper(ax, 7.2, 1.4 + 0.26 * len(machines) * len(algorithms))
    thick = 0.8 / len(machines)
    for place, (machine, look) in enumerate(zip(machines, looks(), strict=False)):
        rows = table[table["machine"] == machine]
        heights = [
            algorithms.index(name) + thick * (place + 0.5) - 0.4 for name in rows["algorithm"]
        ]
        axes.barh(heights, rows["relative_speed"], thick, color=look["color"], label=machine)
    axes.set_yticks(range(len(algorithms)), [_wrapped(name) for name in algorithms])
    axes.invert_yaxis()
    axes.set_xlabel(f"speed, {algorithms[0]} = 100 %")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    rule(axes, "x")
    legend_above(axes, columns=2)
    return axes


def _require(table: "pd.DataFrame", columns: tuple[str, ...]) -> None:
    if missing := [name for name in columns if name not in table.columns]:
        raise ConfigError(
            f"a frame without {', '.join(missing)}: give one with {', '.join(columns)}."
        )


def _name_points(axes: Axes, points: "pd.DataFrame", cost: str) -> None:
    """Label points with their bits, below and left, off all points; of near ones the first."""
    (left, right), (low, high) = np.log(axes.get_xlim()), axes.get_ylim()
    named: list[tuple[float, float]] = []
    for row in points.itertuples():
        at = (np.log(row.nbytes) - left) / (right - left), (getattr(row, cost) - low) / (high - low)
        if all(abs(at[0] - x) > 0.14 or abs(at[1] - y) > 0.09 for x, y in named):
            named.append(at)
            axes.annotate(
                f"{row.attention}/{row.experts}",
                (row.nbytes, getattr(row, cost)),
                xytext=(-4, -4),
                textcoords="offset points",
                ha="right",
                va="top",
            )


def _label_sizes(axes: Axes, largest: float) -> None:
    """Label a few round sizes on a logarithmic scale, between the smallest and the largest."""
    unit, nbytes = _unit(largest)
    low, high = (end / nbytes for end in axes.get_xlim())
    steps = [base * 10.0**power for power in range(-3, 4) for base in (1, 2, 3, 5, 7)]
    inside = [step for step in steps if low <= step <= high]
    marked = inside[:: -(-len(inside) // 6) or 1]
    axes.set_xticks([step * nbytes for step in marked], [f"{step:g}" for step in marked])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"size of all weights, {unit}")


def _unit(largest: float) -> tuple[str, int]:
    """Return the unit in which a size is written, and its bytes."""
    unit = format_nbytes(largest).split()[1]
    return unit, parse_nbytes(f"1{unit}")


def _label_round_sizes(axes: Axes, largest: float) -> None:
    """Label round sizes, in the unit of the largest."""
    unit, nbytes = _unit(largest)
    sizes = [float(size) for size in MaxNLocator(5).tick_values(0, largest / nbytes)]
    axes.set_xticks([size * nbytes for size in sizes], [f"{size:g}" for size in sizes])
    axes.set_xlabel(unit)


def _ahead(layers: int) -> str:
    return "its own layer" if layers == 0 else f"{layers} layer{'s' * (layers > 1)} ahead"


def _wrapped(name: str, width: int = 16) -> str:
    """Return a name in lines of about a number of letters."""
    lines = [""]
    for word in name.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
