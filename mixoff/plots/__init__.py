"""Plots, one for each question, and the table behind each. Knows data frames; computes nothing new.

``hit_rate(sweep)`` draws what ``hit_rate_table(sweep)`` returns, and so for every other pair. Both
take the same arguments, but for `ax`. A table is a tidy data frame, one row for each mark of the
plot: its last column is drawn (heights of points, lengths of bars, colours of cells), and the
columns before it say where. Units are in the columns' names; shares and rates are 0 to 1. A plot
draws its table and nothing else but guides, such as lines between groups. Make a table wide for
reading with pandas, as in
``mixoff.plots.hit_rate_table(sweep).pivot(index="slots", columns="policy", values="hit_rate")``.
A plot that needs a figure of its own returns a list of Axes and takes no `ax`.
"""

from mixoff.plots.cache import (
    hit_rate,
    hit_rate_table,
    kind_hit_rate,
    kind_hit_rate_table,
    layer_hit_rate,
    layer_hit_rate_table,
    recovered,
    recovered_table,
)
from mixoff.plots.quality import (
    memory,
    memory_table,
    quality,
    quality_table,
    recall,
    recall_table,
    relative_speed,
    relative_speed_table,
)
from mixoff.plots.reuse import reuse_distance, reuse_distance_table
from mixoff.plots.timeline import timeline, timeline_table
from mixoff.plots.transfers import (
    bandwidth,
    bandwidth_table,
    in_flight,
    in_flight_table,
    latency,
    latency_table,
    predicted,
    predicted_table,
    waiting,
    waiting_table,
)
from mixoff.plots.usage import (
    balance,
    balance_table,
    usage,
    usage_divergence,
    usage_divergence_table,
    usage_table,
)

__all__ = [
    "balance",
    "balance_table",
    "bandwidth",
    "bandwidth_table",
    "hit_rate",
    "hit_rate_table",
    "in_flight",
    "in_flight_table",
    "kind_hit_rate",
    "kind_hit_rate_table",
    "latency",
    "latency_table",
    "layer_hit_rate",
    "layer_hit_rate_table",
    "memory",
    "memory_table",
    "predicted",
    "predicted_table",
    "quality",
    "quality_table",
    "recall",
    "recall_table",
    "recovered",
    "recovered_table",
    "relative_speed",
    "relative_speed_table",
    "reuse_distance",
    "reuse_distance_table",
    "timeline",
    "timeline_table",
    "usage",
    "usage_divergence",
    "usage_divergence_table",
    "usage_table",
    "waiting",
    "waiting_table",
]
