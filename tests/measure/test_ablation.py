"""Ablations differ in what they fetch, and compute the same."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mixoff import build_model
from mixoff.config import OffloadConfig
from mixoff.errors import ConfigError
from mixoff.measure import ablation_speed, ablations, fetch_whole_layers
from support.tiny import EXACT

LAYERS, EXPERTS, TOP_K, PROMPT = 3, 8, 2, 4
ids = torch.randint(256, (12,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def folder(quantized: Callable[..., Path]) -> Path:
    return quantized(EXACT, num_hidden_layers=LAYERS)


@pytest.fixture
def built(folder: Path) -> Iterator[tuple]:
    model, cache = build_model(folder, OffloadConfig(offload_per_layer=5))
    yield model, cache
    cache.close()


def record_nbytes(folder: Path) -> int:
    cache = build_model(folder, OffloadConfig(offload_per_layer=EXPERTS))[1]
    for _ in cache.acquire(0, [0]):
        pass
    cache.close()
    return cache.stats().bytes_moved


def test_ablations_take_the_algorithm_away_part_by_part():
    full, no_guesses, no_cache, naive = ablations(8, slots=3, prefetch=2)
    assert (full.offload.slots_per_layer(8), full.offload.prefetch) == (3, 2)
    assert (no_guesses.offload.slots_per_layer(8), no_guesses.offload.prefetch) == (3, 0)
    assert no_cache.offload == naive.offload == OffloadConfig(offload_per_layer=8)
    whole = [each.fetch_whole_layers for each in (full, no_guesses, no_cache, naive)]
    assert whole == [False, False, False, True]


@pytest.mark.parametrize("slots", [0, 9])
def test_ablations_with_no_slot_or_too_many_are_refused(slots):
    with pytest.raises(ConfigError, match="8 experts"):
        ablations(8, slots=slots)


def test_each_ablation_fetches_as_many_bytes_a_token_as_its_name_implies(folder):
    speed = ablation_speed(folder, ablations(EXPERTS), ids, prompt=PROMPT, rounds=2)
    record = record_nbytes(folder)
    means = speed.groupby("algorithm", sort=False)["nbytes_per_token"].mean()
    full, no_guesses, no_cache, naive = means
    assert naive == LAYERS * EXPERTS * record
    assert no_cache == LAYERS * TOP_K * record
    assert no_guesses <= no_cache
    assert full >= no_guesses  # wrong guesses are fetched and never used
    rates = speed.groupby("algorithm", sort=False)["hit_rate"].mean().tolist()
    assert rates[0] == rates[1] == pytest.approx(1 - no_guesses / no_cache)
    assert rates[2:] == [0, 0]


def test_there_is_a_row_for_each_ablation_in_each_round(folder):
    compared = ablations(EXPERTS)[1:3]
    speed = ablation_speed(folder, compared, ids, prompt=PROMPT, rounds=3)
    assert speed["algorithm"].tolist() == [ablation.name for ablation in compared] * 3
    assert speed["round"].tolist() == [0, 0, 1, 1, 2, 2]
    assert (speed[["tokens_per_second", "wait_ms_per_token"]] > 0).all(axis=None)


def test_fetching_whole_layers_changes_no_logits_and_ends_with_the_block(built):
    model, cache = built
    usual = model(input_ids=ids[None]).logits
    with fetch_whole_layers(model):
        assert torch.equal(model(input_ids=ids[None]).logits, usual)
        before = cache.stats()
        model(input_ids=ids[None, :1])
        assert (cache.stats() - before).misses == LAYERS * EXPERTS
    assert cache.slots_per_layer == 3
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(input_ids=ids[None]).logits, usual)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"prompt": 12}, {"prompt": 0}], ids=str)
def test_nothing_to_time_is_refused(folder, wrong):
    with pytest.raises(ConfigError, match="tokens to decode"):
        ablation_speed(folder, ablations(EXPERTS), ids, **wrong)
    with pytest.raises(ConfigError, match="0 ablations"):
        ablation_speed(folder, (), ids)
