"""A mover has the methods that mean something for its device, and no others."""

import pytest

from mixoff.tiers.cpu import CpuMover
from mixoff.tiers.gpu import GpuMover
from mixoff.tiers.mover import HostSide, KeepsEvicted


@pytest.mark.parametrize(
    ("mover", "has", "lacks"),
    [(CpuMover, KeepsEvicted, HostSide), (GpuMover, HostSide, KeepsEvicted)],
)
def test_only_a_gpu_has_host_memory_apart_and_only_a_cpu_keeps_evicted_records(mover, has, lacks):
    assert issubclass(mover, has)
    assert not issubclass(mover, lacks)
    assert not [name for name in vars(lacks) if not name.startswith("_") and hasattr(mover, name)]
