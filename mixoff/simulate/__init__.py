"""Hits and misses of other caches in a recording, and the speed of a machine with them.

Knows recordings, policies, bytes and seconds; needs no model and no torch. Read `replay.py` first;
`speed.py` computes tokens/s from hits and misses for a `machine.py`.
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
