"""A plan keeps within its budgets, adds up, and refuses with numbers what doesn't fit."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixoff.config import OffloadConfig
from mixoff.errors import ConfigError
from mixoff.planning.free_memory import FreeMemory, headroom
from mixoff.planning.plan import MemoryPlan, plan_memory
from mixoff.units import format_nbytes
from support.plans import DEVICES, EXPERTS, GIB, LAYERS, MIB, least
from support.tiers import examples


@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    device=st.sampled_from(["cpu", "cuda"]),
    device_memory=st.integers(0, 3 * MIB) | st.just("auto"),
    host_memory=st.integers(0, 3 * MIB) | st.just("auto"),
    free_host=st.integers(0, 2 * GIB),
    free_device=st.integers(0, 2 * GIB),
)
def test_a_plan_keeps_any_budgets_and_adds_up_or_is_refused(
    planned, device, device_memory, host_memory, free_host, free_device
):
    free = FreeMemory(free_host, free_host if device == "cpu" else free_device)
    try:
        plan = planned(device, free, device_memory=device_memory, host_memory=host_memory)
    except ConfigError:
        return
    on_gpu = device == "cuda"
    assert 1 <= plan.slots_per_layer <= EXPERTS
    assert plan.total == plan.device_nbytes + plan.host_nbytes
    assert plan.device_nbytes <= (free.device if device_memory == "auto" else device_memory)
    assert plan.host <= (free_host if host_memory == "auto" else host_memory)
    assert (plan.host_nbytes if on_gpu and plan.host else 0) <= free_host
    assert on_gpu or plan.total <= free_host
    experts = (plan.experts_on_device, plan.experts_on_host, plan.experts_on_disk)
    assert min(experts) >= 0
    assert sum(experts) == LAYERS * EXPERTS
    assert plan.pinned <= plan.host_nbytes


# ---- the device's budget


@DEVICES
@pytest.mark.parametrize("slots", range(1, EXPERTS + 1))
def test_a_plan_has_as_many_slots_as_fit_the_budget(planned, device, slots):
    budget = least(planned(device)) + (slots - 1) * LAYERS * planned(device).buffer_nbytes
    assert planned(device, device_memory=budget).slots_per_layer == slots
    assert planned(device, device_memory=budget).device_nbytes == budget
    if slots > 1:
        assert planned(device, device_memory=budget - 1).slots_per_layer == slots - 1


def test_a_budget_above_all_experts_is_not_used_up(planned):
    plan = planned(device_memory="1GiB")
    assert (plan.slots_per_layer, plan.experts_on_disk) == (EXPERTS, 0)
    assert plan.device_nbytes < 3 * MIB


@DEVICES
def test_a_budget_without_room_for_one_slot_a_layer_is_refused_with_the_numbers(planned, device):
    plan = planned(device)
    too_little = least(plan) - 5000
    with pytest.raises(ConfigError) as refusal:
        planned(device, device_memory=too_little)
    message = str(refusal.value)
    assert f"device_memory={too_little}" in message
    parts = (plan.non_expert, plan.kv_cache, plan.workspace, plan.staging, least(plan), 5000)
    assert all(format_nbytes(nbytes) in message for nbytes in parts)
    enough = int(re.search(r"give (\d+) bytes or more", message)[1])
    assert planned(device, device_memory=enough).slots_per_layer == 1


def test_fewer_staging_buffers_leave_room_for_slots(planned):
    budget = least(planned(staging=6))
    assert planned(device_memory=budget, staging=2).slots_per_layer == 3
    assert planned(device_memory=budget, staging=6).slots_per_layer == 1


@DEVICES
def test_auto_leaves_headroom_on_the_device(planned, device):
    room = least(planned(device)) + LAYERS * planned(device).buffer_nbytes
    free = FreeMemory(host=room + 256 * MIB, device=room + 256 * MIB)
    plan = planned(device, free, device_memory="auto")
    assert plan.slots_per_layer == 2
    assert plan.device_nbytes == room <= free.device - headroom(free.device)


def test_auto_without_room_beside_the_headroom_is_refused(planned):
    with pytest.raises(
        ConfigError, match=r"device_memory='auto' \(0 B\): the non-expert parameters take"
    ):
        planned(free=FreeMemory(250 * MIB, 250 * MIB), device_memory="auto")


def test_a_gpus_budget_is_its_own_memory_not_the_hosts(planned):
    plan = planned("cuda", FreeMemory(host=20 * MIB, device=GIB), device_memory="auto")
    assert plan.slots_per_layer == EXPERTS


# ---- host memory


def buffers(plan: MemoryPlan, count: int) -> int:
    return count * plan.buffer_nbytes


@pytest.mark.parametrize(
    ("device", "held", "kind", "on_host", "on_disk"),
    [
        ("cuda", 0, "none", 0, 8),
        ("cuda", 3, "exclusive", 3, 5),
        ("cuda", 8, "exclusive", 8, 0),
        ("cuda", 15, "exclusive", 8, 0),
        ("cuda", 16, "inclusive", 8, 0),
        ("cuda", 99, "inclusive", 8, 0),
        ("cpu", 0, "none", 0, 8),
        ("cpu", 3, "exclusive", 3, 5),
        ("cpu", 99, "exclusive", 8, 0),
    ],
)
def test_the_host_tier_is_inclusive_where_it_may_hold_all(
    planned, device, held, kind, on_host, on_disk
):
    budget = buffers(planned(), held)
    plan = planned(device, host_memory=budget)
    assert (plan.host_tier, plan.experts_on_host, plan.experts_on_disk) == (kind, on_host, on_disk)
    assert plan.host == buffers(plan, min(held, 16 if kind == "inclusive" else 8))


def test_the_host_tier_that_is_set_is_planned(planned):
    budget = buffers(planned(), 99)
    exclusive = planned("cuda", host_memory=budget, host_tier="exclusive")
    assert (exclusive.host_tier, exclusive.host) == ("exclusive", buffers(exclusive, 8))
    inclusive = planned("cuda", host_memory=buffers(exclusive, 5), host_tier="inclusive")
    assert (inclusive.host_tier, inclusive.experts_on_host) == ("inclusive", 5)


def test_host_memory_is_not_taken_when_all_experts_are_on_the_device(planned):
    plan = planned(offload_per_layer=0, host_memory="1GiB")
    assert (plan.host, plan.host_tier) == (0, "none")


def test_auto_leaves_headroom_on_the_host_beside_all_other_parts(planned):
    on_cpu, on_gpu = planned("cpu"), planned("cuda")
    for plan, taken in ((on_cpu, on_cpu.device_nbytes), (on_gpu, on_gpu.bounce)):
        room = taken + buffers(plan, 3) + 256 * MIB
        fitted = planned(plan.device, FreeMemory(room, room), host_memory="auto")
        assert fitted.host == buffers(plan, 3)


def test_all_auto_plans_slots_first_and_counts_no_byte_twice_on_a_cpu(checkpoint, planned):
    room = least(planned()) + buffers(planned(), 2 * LAYERS) + 256 * MIB
    free = FreeMemory(room, room)
    plan = plan_memory(checkpoint, OffloadConfig.auto(), free=free)
    assert plan.slots_per_layer == 3
    assert plan.host == 0
    assert plan.total <= room - headroom(room)


@pytest.mark.parametrize(
    ("offload", "device", "message"),
    [
        ({"host_memory": 5000}, "cpu", "host_memory=5000: one record takes .* give .* or 0"),
        ({"host_tier": "exclusive"}, "cuda", "host_tier='exclusive': host_memory=0 keeps no"),
        ({"host_tier": "inclusive", "host_memory": "1GiB"}, "cpu", "would lie there twice"),
        ({"pinned_memory": "1MiB"}, "cpu", "pinned_memory='1MiB': memory is pinned for a GPU"),
        ({"miss": "compute"}, "cpu", "miss='compute': .* give 'fetch', or device='cuda'"),
        ({"miss": "auto", "offload_per_layer": 0}, "cpu", "miss='auto': .* give 'fetch'"),
        ({"miss": "compute"}, "cuda", "miss='compute': host_memory=0 keeps no record .* 10GiB"),
        ({"prefetch": 9}, "cpu", "prefetch=9: a layer of this model has 8 experts: give 0 to 8"),
        ({"offload_per_layer": 9}, "cpu", "offload_per_layer=9: .* give 0 to 8"),
    ],
)
def test_settings_without_effect_are_refused(planned, offload, device, message):
    with pytest.raises(ConfigError, match=message):
        planned(device, **offload)


@pytest.mark.parametrize("miss", ["compute", "auto"])
def test_misses_may_be_computed_in_host_memory_beside_a_gpu(planned, miss):
    assert planned("cuda", miss=miss, host_memory="1GiB") == planned("cuda", host_memory="1GiB")
    assert planned("cuda", miss=miss, offload_per_layer=0).host == 0  # nothing misses


# ---- pinned memory


def test_all_memory_that_a_gpu_copies_from_is_pinned_up_to_half_of_the_free_bytes(planned):
    plan = planned("cuda", host_memory="1GiB")
    assert plan.pinned == plan.host_nbytes == plan.host + plan.bounce
    tight = FreeMemory(host=3 * MIB // 2, device=GIB)
    assert planned("cuda", tight, host_memory=MIB).pinned == 3 * MIB // 4


@pytest.mark.parametrize("budget", [0, 4096, "100KiB"])
def test_no_more_is_pinned_than_the_budget(planned, budget):
    nbytes = {0: 0, 4096: 4096, "100KiB": 100 * 1024}[budget]
    assert planned("cuda", pinned_memory=budget).pinned == nbytes


# ---- the machine's memory


def test_all_tiers_together_must_fit_a_cpus_memory(planned):
    options = {"offload_per_layer": 4, "host_memory": "1GiB"}
    total = planned(**options).total
    assert planned(free=FreeMemory(total, total), **options).total == total
    with pytest.raises(ConfigError, match=re.escape(f"takes {format_nbytes(total)} (")) as refusal:
        planned(free=FreeMemory(total - 2000, total - 2000), **options)
    assert f"{format_nbytes(2000)} too much: lower device_memory or host_memory" in str(refusal)


def test_a_gpus_budget_must_fit_its_memory(planned):
    budget = least(planned("cuda"))
    with pytest.raises(ConfigError, match="too much: lower device_memory"):
        planned("cuda", FreeMemory(GIB, budget - 1), device_memory=budget)


def test_records_for_a_gpu_must_fit_host_memory_beside_bounce_buffers(planned):
    host = planned("cuda", host_memory="1GiB").host_nbytes
    assert planned("cuda", FreeMemory(host, 0), host_memory="1GiB").host_nbytes == host
    with pytest.raises(ConfigError, match="free, 1 B too much: lower device_memory or host_memory"):
        planned("cuda", FreeMemory(host - 1, 0), host_memory="1GiB")


@DEVICES
def test_without_any_budget_nothing_is_refused(planned, device):
    assert planned(device, FreeMemory(0, 0), offload_per_layer=4).slots_per_layer == 4
