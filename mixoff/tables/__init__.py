"""The numbers of every picture in `mixoff.plots`: its twin here, of the same name.

A picture and its twin take the same arguments, but for `ax`. The twin returns a tidy data frame,
one row a mark that is drawn: its last column is what is drawn (heights of points, lengths of bars,
colours of cells), and the columns before it say where. Units stand in the columns' names; shares
and rates are 0 to 1. A picture draws what its twin returns, and nothing else but guides, such as
lines between groups. Make one wide for reading with pandas, as in
``mixoff.tables.hit_rate(sweep).pivot(index="slots", columns="policy", values="hit_rate")``.
"""

from mixoff.tables.cache import hit_rate, kind_hit_rate, layer_hit_rate, recovered
from mixoff.tables.quality import memory, quality, recall, relative_speed
from mixoff.tables.reuse import reuse_distance
from mixoff.tables.timeline import timeline
from mixoff.tables.transfers import bandwidth, in_flight, latency, predicted, waiting
from mixoff.tables.usage import balance, divergence, usage

__all__ = [
    "balance",
    "bandwidth",
    "divergence",
    "hit_rate",
    "in_flight",
    "kind_hit_rate",
    "latency",
    "layer_hit_rate",
    "memory",
    "predicted",
    "quality",
    "recall",
    "recovered",
    "relative_speed",
    "reuse_distance",
    "timeline",
    "usage",
    "waiting",
]
