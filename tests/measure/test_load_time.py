"""What loading takes is measured where nothing else is, and stands beside what was planned."""

from mixoff import OffloadConfig, demo_path, plan_memory
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.measure import load_time

MIB = 1 << 20


def test_the_demo_model_takes_about_what_was_planned():
    offload = OffloadConfig(offload_per_layer=2)
    found = load_time(demo_path(), offload)
    assert found.plan.total == plan_memory(open_checkpoint(demo_path()), offload).total
    assert found.seconds > 0
    assert 0.5 * found.plan.total < found.peak_nbytes < found.plan.total + 16 * MIB
    assert 0 < found.libraries_nbytes < 512 * MIB
