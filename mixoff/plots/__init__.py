"""Pictures, one for each question: a data frame or a trace in, matplotlib Axes out.

Each has a twin in `mixoff.tables` of the same name that returns the numbers it draws. A picture
that needs a figure of its own returns a list of Axes and takes no `ax`.
"""

from mixoff.plots.cache import hit_rate, kind_hit_rate, layer_hit_rate, recovered
from mixoff.plots.quality import memory, quality, recall, relative_speed
from mixoff.plots.reuse import reuse_distance
from mixoff.plots.timeline import timeline
from mixoff.plots.transfers import bandwidth, in_flight, latency, predicted, waiting
from mixoff.plots.usage import balance, divergence, usage

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
