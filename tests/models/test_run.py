"""A run is prepared once, without loading anything, and any number of models is built from it."""

import copy

import pytest
import torch

from mixoff import ConfigError, OffloadConfig, build_model
from mixoff.checkpoints.safetensors_read import Shard
from mixoff.models.build import build
from mixoff.models.run import prepare
from mixoff.planning.free_memory import FreeMemory
from support.models import logits_both_ways
from support.tiny import EXACT, MIXED


def test_a_run_builds_the_model_that_its_settings_ask_for_as_often_as_wanted(quantized):
    folder, offload = quantized(MIXED), OffloadConfig(offload_per_layer=6)
    run = prepare(folder, offload, dtype=torch.bfloat16, kernels="torch")
    expected, _ = build_model(folder, offload, dtype=torch.bfloat16, kernels="torch")
    for _ in range(2):
        model, cache = build(run)
        assert (model.dtype, cache.slots_per_layer) == (torch.bfloat16, 2)
        assert torch.equal(logits_both_ways(model), logits_both_ways(expected))


def test_preparing_reads_no_tensor(quantized, monkeypatch):
    folder = quantized(EXACT)
    monkeypatch.delattr(Shard, "read_range")
    assert prepare(folder).plan.experts_on_device > 0


def test_a_run_is_what_a_model_was_built_from(quantized):
    run = prepare(quantized(MIXED))
    model, _ = build(run)
    assert model.config.quantization_config.run is run
    assert copy.deepcopy(run) is run


def test_building_does_not_change_the_kernels_of_a_run(quantized):
    run = prepare(quantized(MIXED))
    before = [dict(vars(kernels)) for kernels in (run.kernels, run.host_kernels)]
    build(run)
    assert [vars(kernels) for kernels in (run.kernels, run.host_kernels)] == before


def test_a_run_can_be_planned_again_for_what_is_free_later(quantized, monkeypatch):
    run = prepare(quantized(EXACT), OffloadConfig.auto())
    assert run.plan.slots_per_layer == 8
    free = run.plan.device_nbytes - 1 + (256 << 20)  # some stays free of what is
    monkeypatch.setattr("mixoff.planning.plan.free_memory", lambda _: FreeMemory(free, free))
    again = run.planned_again()
    assert again.plan.slots_per_layer == 7
    assert again.checkpoint is run.checkpoint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernels": "nonsense"}, "kernels='nonsense': give one of"),
        ({"device": "nonsense"}, "device='nonsense': .*; give cpu, or cuda"),
        ({"offload": OffloadConfig(offload_per_layer=9)}, "offload_per_layer=9: .*give 0 to 8"),
    ],
    ids=["kernels", "device", "offload"],
)
def test_what_cannot_be_is_refused_when_a_run_is_prepared(quantized, settings, message):
    with pytest.raises(ConfigError, match=message):
        prepare(quantized(EXACT), **settings)
