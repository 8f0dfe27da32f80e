"""Keys and values that grow in place equal those that transformers concatenates."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, MixtralConfig
from transformers.cache_utils import DynamicLayer

from mixoff.chat import kv_cache
from mixoff.chat.kv_cache import GrowingLayer, growing_cache

HEADS, SIZE = 2, 4
steps = st.lists(st.integers(1, 90) | st.integers(-30, -1), max_size=12)


def states(tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, HEADS, tokens, SIZE, generator=generator)


@given(steps)
def test_a_layer_equals_transformers_own_whatever_is_added_and_cropped(steps):
    ours, stock = GrowingLayer(), DynamicLayer()
    for number, tokens in enumerate(steps):
        if tokens < 0:
            if stock.get_seq_length() > -tokens:
                ours.crop(tokens)
                stock.crop(tokens)
            continue
        grown = ours.update(states(tokens, number), states(tokens, -number))
        expected = stock.update(states(tokens, number), states(tokens, -number))
        assert all(map(torch.equal, grown, expected))
        assert ours.get_seq_length() == stock.get_seq_length()


def test_a_token_is_written_behind_the_earlier_ones_without_a_copy():
    layer = GrowingLayer()
    layer.update(states(100, 0), states(100, 1))
    before = layer.keys.data_ptr(), layer.values.data_ptr()
    for token in range(20):
        layer.update(states(1, token), states(1, token))
        assert (layer.keys.data_ptr(), layer.values.data_ptr()) == before


def test_buffers_are_few_for_many_tokens(monkeypatch):
    layer, sizes, capacity = GrowingLayer(), [], kv_cache._capacity
    monkeypatch.setattr(
        kv_cache, "_capacity", lambda tokens: sizes.append(tokens) or capacity(tokens)
    )
    for token in range(2000):
        layer.update(states(1, token), states(1, token))
    assert len(sizes) < 2 * 20, "of keys, and of values"
    assert layer._buffers["keys"].shape[-2] == 2048


@given(st.integers(1, 10**6))
def test_spare_capacity_is_a_quarter_of_the_tokens_at_most_and_none_for_powers_of_two(tokens):
    assert tokens <= kv_cache._capacity(tokens) <= max(tokens * 5 // 4, tokens + 63)
    assert kv_cache._capacity(64 << tokens % 12) == 64 << tokens % 12


def test_a_shallow_copy_grows_in_buffers_of_its_own():
    layer = GrowingLayer()
    layer.update(states(3, 0), states(3, 1))
    copied = copy.copy(layer)
    layer.update(states(1, 2), states(1, 2))
    copied.update(states(1, 3), states(1, 3))
    assert torch.equal(layer.keys, torch.cat([states(3, 0), states(1, 2)], dim=-2))
    assert torch.equal(copied.keys, torch.cat([states(3, 0), states(1, 3)], dim=-2))


def test_other_shapes_are_refused_and_other_types_promoted_as_by_transformers():
    layer = GrowingLayer()
    layer.update(states(3, 0), states(3, 1))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        layer.update(*[states(1, 2).expand(2, -1, -1, -1)] * 2)
    keys, _ = layer.update(*[states(1, 2).double()] * 2)
    assert keys.dtype is torch.float64


@pytest.mark.parametrize("change", ["reset", "reorder", "repeat", "select"])
def test_a_layer_grows_on_after_transformers_has_changed_it(change):
    layers = GrowingLayer(), DynamicLayer()
    for layer in layers:
        layer.update(states(3, 0).expand(2, -1, -1, -1), states(3, 1).expand(2, -1, -1, -1))
        if change == "reset":
            layer.reset()
        elif change == "reorder":
            layer.reorder_cache(torch.tensor([1, 0]))
        elif change == "repeat":
            layer.batch_repeat_interleave(2)
        else:
            layer.batch_select_indices(torch.tensor([1]))
        batch = 2 if change == "reset" else layer.keys.shape[0]
        layer.update(*(states(2, seed).expand(batch, -1, -1, -1) for seed in (2, 3)))
    assert torch.equal(layers[0].keys, layers[1].keys)
    assert torch.equal(layers[0].values, layers[1].values)


def test_layers_with_a_sliding_window_stay_transformers_own():
    grown = growing_cache(MixtralConfig(num_hidden_layers=2))
    assert [type(layer) for layer in grown.layers] == [GrowingLayer] * 2
    config = MixtralConfig(num_hidden_layers=2, sliding_window=8)
    stock = DynamicCache(config=config)
    assert [*map(type, growing_cache(config).layers)] == [*map(type, stock.layers)]
