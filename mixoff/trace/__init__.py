"""What a cache did, event by event: recorded, saved, summed up and drawn. No torch."""

from mixoff.trace.recorder import Recorder
from mixoff.trace.trace import Trace

__all__ = ["Recorder", "Trace"]
