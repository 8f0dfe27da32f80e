"""Pictures, one for each question: a data frame or a trace in, matplotlib Axes out.

Each has a twin in `mixoff.tables` of the same name that returns the numbers it draws. A picture
that needs a figure of its own returns a list of Axes and takes no `ax`.
"""

from mixoff.plots.cache import hit_rate
from mixoff.plots.timeline import timeline

__all__ = ["hit_rate", "timeline"]
