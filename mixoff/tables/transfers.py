"""What pictures of transfers show, as numbers. Knows measurements; draws nothing."""

from typing import TYPE_CHECKING

from mixoff.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

COMPUTE, WAIT = "compute", "waiting for experts"


def latency(transfers: "pd.DataFrame", *, in_flight: int = 1) -> "pd.DataFrame":
    """Return how long a record takes by its size, of what `mixoff.measure_transfers` gave.

    Columns: way, nbytes, ms (until the last of those in flight is there).

    Raises
    ------
    ConfigError
        If nothing was measured with so many in flight.
    """
    return _ways(transfers, in_flight)[["way", "nbytes", "ms"]]


def bandwidth(transfers: "pd.DataFrame", *, in_flight: int = 1) -> "pd.DataFrame":
    """Return bandwidth by a record's size, of what `mixoff.measure_transfers` gave.

    Columns: way, nbytes, gb_per_s (of all that are in flight, in 1e9 bytes a second).

    Raises
    ------
    ConfigError
        If nothing was measured with so many in flight.
    """
    return _ways(transfers, in_flight)[["way", "nbytes", "gb_per_s"]]


def in_flight(transfers: "pd.DataFrame") -> "pd.DataFrame":
    """Return the largest records' bandwidth by how many are in flight.

    Columns: way, in_flight, gb_per_s (of `mixoff.measure_transfers`).
    """
    largest = _named(transfers[transfers["nbytes"] == transfers["nbytes"].max()])
    return largest[["way", "in_flight", "gb_per_s"]].reset_index(drop=True)


def waiting(speeds: "pd.DataFrame", by: str) -> "pd.DataFrame":
    """Return what a token computes and waits, of rows that `mixoff.measured_speed` gave.

    Columns: the one that rows are told apart by, part (compute, or waiting for experts), ms.

    Raises
    ------
    ConfigError
        If there is no such column, or two rows have the same there.
    """
    if by not in speeds or speeds[by].duplicated().any():
        raise ConfigError(f"by={by!r}: name a column that tells rows apart.")
    parts = {"compute_ms": COMPUTE, "wait_ms": WAIT}
    long = speeds[[by, *parts]].rename(columns=parts).melt(by, var_name="part", value_name="ms")
    return long


def predicted(speeds: "pd.DataFrame", by: str) -> "pd.DataFrame":
    """Return predicted tokens a second beside measured ones.

    Parameters
    ----------
    speeds
        Columns ``measured`` and ``predicted``, in tokens a second, and one that names groups.
    by
        That column.

    Returns
    -------
    pandas.DataFrame
        That column, measured, error (predicted by measured, less 1), predicted.
    """
    error = speeds["predicted"] / speeds["measured"] - 1
    return speeds.assign(error=error)[[by, "measured", "error", "predicted"]]


def _ways(transfers: "pd.DataFrame", number: int) -> "pd.DataFrame":
    rows = transfers[transfers["in_flight"] == number]
    if rows.empty:
        known = sorted(set(transfers["in_flight"]))
        raise ConfigError(f"in_flight={number}: measured were {', '.join(map(str, known))}.")
    return _named(rows).sort_values(["way", "nbytes"], ignore_index=True)


def _named(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return rows with a name for their way: what is read past what, or copied how."""
    file = rows["page_cache"].map({"in it": "cached", "dropped from it": "uncached"})
    how = file.fillna(rows["method"])
    return rows.assign(way=rows["source"] + " to " + rows["target"] + ", " + how)
