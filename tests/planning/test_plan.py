"""A plan counts all parts of a run, on this machine or on another one."""

import pytest
import torch

from mixoff.checkpoints.formats import open_checkpoint
from mixoff.config import OffloadConfig
from mixoff.errors import ConfigError
from mixoff.kernels import kernels_named
from mixoff.planning.free_memory import FreeMemory
from mixoff.planning.plan import plan_memory
from mixoff.quantization import HQQ, Unquantized
from mixoff.tiers.aligned import PAGE
from mixoff.units import format_nbytes
from support.plans import DEVICES, EXPERTS, LAYERS, PLENTY, UNKNOWN
from support.tiny import EXACT, MIXED


@DEVICES
def test_without_any_budget_half_of_the_experts_start_outside(planned, device):
    assert planned(device).slots_per_layer == 4
    assert planned(device) == planned(device, offload_per_layer=4)


@pytest.mark.parametrize("experts", [1, 2, 3, 5])
def test_a_layer_has_a_slot_however_few_experts_it_has(quantized, experts):
    opened = open_checkpoint(quantized(EXACT, experts=experts, top_k=1))
    plan = plan_memory(opened, OffloadConfig(), free=PLENTY)
    assert plan.slots_per_layer == experts - experts // 2


def test_every_buffer_is_a_page_larger_than_a_record(planned, checkpoint):
    plan = planned(offload_per_layer=5, staging=3)
    assert plan.buffer_nbytes == checkpoint.expert_layouts()[0][0].stride + PAGE
    assert plan.slots == 3 * LAYERS * plan.buffer_nbytes
    assert plan.staging == 3 * plan.buffer_nbytes
    assert plan.disk == LAYERS * EXPERTS * checkpoint.expert_layouts()[0][0].stride


def test_a_longer_context_takes_a_larger_kv_cache(checkpoint):
    short, long = (
        plan_memory(checkpoint, OffloadConfig(), context=tokens, free=PLENTY) for tokens in (10, 30)
    )
    assert long.kv_cache == 3 * short.kv_cache
    assert (short.context, long.context) == (10, 30)


def test_the_workspace_is_that_of_the_kernels():
    pytest.importorskip("llvmlite", reason="kernels are compiled by it")
    stored, shape, sizes = HQQ(2, 16, 8), (28672, 4096), {}
    weights = 28672 * 4096
    for name in ("torch", "cpu"):
        kernels = kernels_named(name)
        sizes[name] = kernels.workspace_nbytes(stored, shape, torch.bfloat16)
        assert kernels.workspace_nbytes(stored, (8, 64), torch.bfloat16) <= 8 * 64 * 7
        whole = Unquantized("bfloat16")
        assert kernels.workspace_nbytes(whole, shape, torch.bfloat16) == 0
        assert kernels.workspace_nbytes(whole, shape, torch.float32) == 4 * weights
        assert kernels.workspace_nbytes(HQQ(4, 24), (24, 48), torch.float32) == 5 * 24 * 48
    assert sizes == {"torch": 7 * weights, "cpu": 8 << 20}
    long_rows = kernels_named("cpu").workspace_nbytes(stored, (4096, 14336), torch.bfloat16)
    assert long_rows == 512 * 14336 * 4


def test_a_plan_counts_the_workspace_of_its_kernels(quantized):
    pytest.importorskip("llvmlite", reason="kernels are compiled by it")
    opened = open_checkpoint(quantized(MIXED))
    plans = [
        plan_memory(opened, OffloadConfig(), free=PLENTY, kernels=kernels)
        for kernels in (kernels_named("torch"), kernels_named("cpu"), None)
    ]
    assert plans[0].workspace > plans[1].workspace == plans[2].workspace


def test_bounce_buffers_are_planned_for_a_gpu_only(planned):
    assert planned("cpu").bounce == planned("cpu").pinned == 0
    assert planned("cuda").bounce == 4 * planned("cuda").buffer_nbytes


def test_budgets_in_bytes_can_be_planned_for_a_gpu_that_is_not_here(planned):
    plan = planned("cuda", UNKNOWN, device_memory="1GiB", host_memory="1GiB")
    assert (plan.io, plan.host_tier) == ("unknown", "none")
    assert planned("cuda", UNKNOWN, io="direct").io == "direct"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_no_gpu_is_needed_to_plan_for_one(checkpoint):
    assert plan_memory(checkpoint, OffloadConfig(), device="cuda").io == "unknown"


@pytest.mark.parametrize("name", ["device_memory", "host_memory"])
def test_auto_needs_a_machine_that_is_here(planned, name):
    with pytest.raises(ConfigError, match=rf"{name}='auto': .* isn't here: give bytes"):
        planned("cuda", UNKNOWN, **{name: "auto"})


def test_free_memory_is_this_machines_by_default(checkpoint):
    assert plan_memory(checkpoint, OffloadConfig.auto()).slots_per_layer == EXPERTS


@DEVICES
def test_direct_reads_are_planned_where_the_page_cache_could_not_hold_all_experts(planned, device):
    plan = planned(device)
    taken = plan.total if device == "cpu" else plan.host_nbytes
    for left, io in ((plan.disk, "buffered"), (plan.disk - 1, "direct")):
        again = planned(device, FreeMemory(taken + left, taken + left))
        assert again.io == io
        assert format_nbytes(plan.disk) in again.io_reason


@pytest.mark.parametrize("io", ["direct", "buffered"])
def test_the_io_that_is_set_is_planned(planned, io):
    assert (planned(io=io).io, planned(io=io).io_reason) == (io, "as asked for")


def test_smaller_records_make_room_for_more_slots(quantized, planned):
    small = open_checkpoint(quantized(MIXED))
    budget = planned().device_nbytes
    plan = plan_memory(small, OffloadConfig(device_memory=budget), free=PLENTY)
    assert plan.slots_per_layer > planned(device_memory=budget).slots_per_layer
