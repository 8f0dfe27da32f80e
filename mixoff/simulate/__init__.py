"""What another cache would have done, and how fast a machine would have been.

Knows recordings, policies, bytes and seconds; needs no model and no torch. Read `replay.py` first;
`speed.py` turns hits and misses into tokens/s on a described `machine.py`.
"""

from mixoff.simulate.machine import LinkModel, Machine
from mixoff.simulate.replay import FLOOR, Replay, replay, sweep
from mixoff.simulate.reuse import reuse_distances
from mixoff.simulate.speed import PrefetchAccuracy, predict_speed, recorded_speed

__all__ = [
    "FLOOR",
    "LinkModel",
    "Machine",
    "PrefetchAccuracy",
    "Replay",
    "predict_speed",
    "recorded_speed",
    "replay",
    "reuse_distances",
    "sweep",
]
