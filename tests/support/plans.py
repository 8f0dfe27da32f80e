"""What tests of memory plans share: a tiny checkpoint, machines, and a function that plans."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mixoff.checkpoints.formats import RunnableCheckpoint, open_checkpoint
from mixoff.config import OffloadConfig
from mixoff.planning.free_memory import FreeMemory
from mixoff.planning.plan import MemoryPlan, plan_memory
from support.tiny import EXACT

MIB, GIB = 2**20, 2**30
LAYERS, EXPERTS = 2, 8
PLENTY = FreeMemory(host=64 * GIB, device=64 * GIB)
UNKNOWN = FreeMemory(host=None, device=None)
DEVICES = pytest.mark.parametrize("device", ["cpu", "cuda"])


@pytest.fixture
def checkpoint(quantized: Callable[..., Path]) -> RunnableCheckpoint:
    return open_checkpoint(quantized(EXACT))


@pytest.fixture
def planned(checkpoint: RunnableCheckpoint) -> Callable[..., MemoryPlan]:
    """Plan for the tiny checkpoint, on a machine with plenty of memory by default."""

    def plan(device: str = "cpu", free: FreeMemory = PLENTY, **settings) -> MemoryPlan:
        return plan_memory(checkpoint, OffloadConfig(**settings), device=device, free=free)

    return plan


def least(plan: MemoryPlan) -> int:
    """Return the smallest budget of a device: all it holds, with one slot in each layer."""
    return plan.device_nbytes - plan.slots + LAYERS * plan.buffer_nbytes
