"""Time and memory of loading are measured in a new process, and compared with the plan."""

import pytest

from mixoff import OffloadConfig, demo_path, plan_memory
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.measure import load_time

MIB = 1 << 20


@pytest.mark.full
def test_the_demo_model_takes_about_what_was_planned():
    offload = OffloadConfig(offload_per_layer=2)
    load = load_time(demo_path(), offload)
    assert load.plan.total == plan_memory(open_checkpoint(demo_path()), offload).total
    assert load.seconds > 0
    assert 0.5 * load.plan.total < load.peak_nbytes < load.plan.total + 16 * MIB
    assert 0 < load.libraries_nbytes < 512 * MIB
