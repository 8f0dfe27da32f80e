"""Before anything is loaded: what a checkpoint needs, what a machine has, what would lie where.

Knows bytes and budgets; moves nothing. Read `plan.py` first.
"""

from mixoff.planning.hardware import Hardware, this_hardware
from mixoff.planning.plan import MemoryPlan, plan_memory
from mixoff.planning.preview import CheckpointPreview, preview_checkpoint
from mixoff.planning.recommend import Recommendation, recommend_checkpoint

__all__ = [
    "CheckpointPreview",
    "Hardware",
    "MemoryPlan",
    "Recommendation",
    "plan_memory",
    "preview_checkpoint",
    "recommend_checkpoint",
    "this_hardware",
]
