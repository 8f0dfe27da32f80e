"""Plots of transfers, of waits for them, and of predicted speeds. Computes nothing new."""

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from mixoff.errors import ConfigError
from mixoff.plots.style import (
    BLUE,
    GREY,
    GUIDE,
    VERMILION,
    axes_on_paper,
    legend_above,
    legend_beside,
    looks,
    on_paper,
    rule,
)

if TYPE_CHECKING:
    import pandas as pd

COMPUTE, WAIT = "compute", "waiting for experts"
_COLOURS = {COMPUTE: BLUE, WAIT: VERMILION}


def latency_table(transfers: "pd.DataFrame", *, in_flight: int = 1) -> "pd.DataFrame":
    """Return the time of a record by its size, of what `mixoff.measure.transfers` returned.

    Columns: path, nbytes, ms (until the last of those in flight has arrived).

    Raises
    ------
    ConfigError
        If no row was measured with so many in flight.
    """
    return _of_number(transfers, in_flight)[["path", "nbytes", "ms"]]


@on_paper
def latency(transfers: "pd.DataFrame", *, in_flight: int = 1, ax: Axes | None = None) -> Axes:
    """Return time against size of what `mixoff.measure.transfers` returned, a line a path.

    Raises
    ------
    ConfigError
        If no row was measured with so many in flight.
    """
    axes = axes_on_paper(ax, 7.2, 3.6)
    _by_size(axes, latency_table(transfers, in_flight=in_flight))
    axes.set(yscale="log", ylabel=_label("ms", in_flight))
    _plain_numbers(axes)
    return axes


def bandwidth_table(transfers: "pd.DataFrame", *, in_flight: int = 1) -> "pd.DataFrame":
    """Return the bandwidth by a record's size, of what `mixoff.measure.transfers` returned.

    Columns: path, nbytes, gb_per_s (of all that are in flight, in 1e9 bytes per second).

    Raises
    ------
    ConfigError
        If no row was measured with so many in flight.
    """
    return _of_number(transfers, in_flight)[["path", "nbytes", "gb_per_s"]]


@on_paper
def bandwidth(transfers: "pd.DataFrame", *, in_flight: int = 1, ax: Axes | None = None) -> Axes:
    """Return bandwidth against size of what `mixoff.measure.transfers` returned, a line a path.

    Raises
    ------
    ConfigError
        If no row was measured with so many in flight.
    """
    axes = axes_on_paper(ax, 7.2, 3.6)
    _by_size(axes, bandwidth_table(transfers, in_flight=in_flight))
    axes.set(yscale="log", ylabel=_label("GB/s", in_flight))
    _plain_numbers(axes)
    return axes


def in_flight_table(transfers: "pd.DataFrame") -> "pd.DataFrame":
    """Return the largest records' bandwidth by their number in flight.

    Columns: path, in_flight, gb_per_s (of `mixoff.measure.transfers`).
    """
    largest = _with_paths(transfers[transfers["nbytes"] == transfers["nbytes"].max()])
    return largest[["path", "in_flight", "gb_per_s"]].reset_index(drop=True)


@on_paper
def in_flight(transfers: "pd.DataFrame", ax: Axes | None = None) -> Axes:
    """Return the largest records' bandwidth against their number in flight, a line a path."""
    axes = axes_on_paper(ax, 7.2, 3.2)
    table = in_flight_table(transfers)
    for (path, rows), look in zip(table.groupby("path"), looks(), strict=False):
        axes.plot(rows["in_flight"], rows["gb_per_s"], label=path, **look)
    axes.set(xlabel="records in flight", ylabel="GB/s, all together", ylim=(0, None))
    axes.set_xticks(sorted(set(table["in_flight"])))
    rule(axes)
    legend_beside(axes)
    return axes


def waiting_table(speeds: "pd.DataFrame", by: str) -> "pd.DataFrame":
    """Return a token's compute and waits, of rows that `mixoff.simulate.recorded_speed` returned.

    Columns: the one named by `by`, part (compute, or waiting for experts), ms.

    Raises
    ------
    ConfigError
        If there is no such column, or two rows have the same value in it.
    """
    if by not in speeds or speeds[by].duplicated().any():
        raise ConfigError(f"by={by!r}: name a column with a different value in each row.")
    parts = {"compute_ms": COMPUTE, "wait_ms": WAIT}
    long = speeds[[by, *parts]].rename(columns=parts).melt(by, var_name="part", value_name="ms")
    return long


@on_paper
def waiting(speeds: "pd.DataFrame", by: str, ax: Axes | None = None) -> Axes:
    """Return a token's compute and waits in each setting, of `recorded_speed`'s rows, a bar each.

    Parameters
    ----------
    by
        The column that names the settings; they stand from above in the order of the rows.

    Raises
    ------
    ConfigError
        If there is no such column, or two rows have the same value in it.
    """
    table = waiting_table(speeds, by)
    axes = axes_on_paper(ax, 6.6, 1.4 + 0.36 * len(speeds))
    names, ends = [*map(str, speeds[by])], [0.0] * len(speeds)
    for part, rows in table.groupby("part"):
        lengths = rows["ms"].tolist()
        axes.barh(names, lengths, left=ends, color=_COLOURS[str(part)], label=part, height=0.7)
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms a token")
    rule(axes, "x")
    legend_above(axes)
    return axes


def predicted_table(speeds: "pd.DataFrame", by: str) -> "pd.DataFrame":
    """Return predicted beside measured tokens per second.

    Parameters
    ----------
    speeds
        Columns ``measured`` and ``predicted``, in tokens per second, and one that names groups.
    by
        That column.

    Returns
    -------
    pandas.DataFrame
        That column, measured, error (predicted over measured, less 1), predicted.
    """
    error = speeds["predicted"] / speeds["measured"] - 1
    return speeds.assign(error=error)[[by, "measured", "error", "predicted"]]


@on_paper
def predicted(speeds: "pd.DataFrame", by: str, ax: Axes | None = None) -> Axes:
    """Return predicted against measured tokens per second, with the diagonal of no error.

    Parameters
    ----------
    speeds, by
        As for `mixoff.plots.predicted_table`.
    """
    table = predicted_table(speeds, by)
    axes = axes_on_paper(ax, 7.2, 3.8)
    for (group, rows), look in zip(table.groupby(by, sort=False), looks(), strict=False):
        axes.plot(
            rows["measured"], rows["predicted"], label=group, linestyle="none", alpha=0.8, **look
        )
    end = 1.08 * float(table[["measured", "predicted"]].max().max())
    axes.plot([0, end], [0, end], color=GREY, linestyle="--", zorder=1, gid=GUIDE)
    axes.set(xlim=(0, end), ylim=(0, end))
    axes.set(xlabel="measured tokens a second", ylabel="predicted tokens a second")
    rule(axes)
    legend_beside(axes)
    return axes


def _of_number(transfers: "pd.DataFrame", number: int) -> "pd.DataFrame":
    rows = transfers[transfers["in_flight"] == number]
    if rows.empty:
        known = sorted(set(transfers["in_flight"]))
        raise ConfigError(f"in_flight={number}: measured were {', '.join(map(str, known))}.")
    return _with_paths(rows).sort_values(["path", "nbytes"], ignore_index=True)


def _with_paths(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return rows with the name of their path: source, target, and method or page cache."""
    file = rows["page_cache"].map({"in it": "cached", "dropped from it": "uncached"})
    how = file.fillna(rows["method"])
    return rows.assign(path=rows["source"] + " to " + rows["target"] + ", " + how)


def _by_size(axes: Axes, table: "pd.DataFrame") -> None:
    """Draw a line a path against the sizes of records."""
    for (path, rows), look in zip(table.groupby("path"), looks(), strict=False):
        axes.plot(rows["nbytes"], rows.iloc[:, -1], label=path, **look)
    sizes = sorted(set(table["nbytes"]))
    axes.set(xscale="log", xlabel="size of a record")
    axes.xaxis.set_major_locator(FixedLocator(sizes[:: -(-len(sizes) // 4)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _short(size)))
    axes.xaxis.set_minor_locator(NullLocator())
    rule(axes)
    legend_beside(axes)


def _plain_numbers(axes: Axes) -> None:
    """Label a logarithmic scale with 0.1, 1 and 10 instead of powers."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _label(unit: str, number: int) -> str:
    return unit if number == 1 else f"{unit}, {number} in flight"


def _short(nbytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:g} {unit}"
        nbytes /= 1024
    return f"{nbytes:g} GiB"
