"""What pictures of hits and misses show, as numbers. Knows sweeps; draws nothing."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def hit_rate(sweep: "pd.DataFrame") -> "pd.DataFrame":
    """Return the hit rate of each policy and size of what `mixoff.sweep` gave, of all layers.

    Columns: policy, slots, hit_rate.
    """
    return _rates(sweep, ["policy", "slots"])


def _rates(sweep: "pd.DataFrame", by: list[str]) -> "pd.DataFrame":
    sums = sweep.groupby(by, sort=False)[["hits", "misses"]].sum()
    rates = sums["hits"] / (sums["hits"] + sums["misses"])
    return rates.rename("hit_rate").reset_index()
