"""Recordings of a cache, event by event: made, saved, summed up and explained.

Knows experts, tiers and times; knows nothing of tensors, and draws nothing. Read `events.py` first,
which has what a cache reports, then `schema.py`, which has the tables that become of it.
"""

from mixoff.trace.recorder import Recorder
from mixoff.trace.trace import Trace

__all__ = ["Recorder", "Trace"]
