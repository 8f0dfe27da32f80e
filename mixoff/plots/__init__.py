"""Pictures, one for each question: a data frame or a trace in, matplotlib Axes out."""

from mixoff.plots.cache import hit_rate
from mixoff.plots.timeline import timeline

__all__ = ["hit_rate", "timeline"]
