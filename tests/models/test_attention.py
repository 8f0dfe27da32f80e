"""One token's attention in two calls is what a model's own modules compute, or is left to them."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache
from transformers.models.mixtral.modeling_mixtral import MixtralAttention

from support.tiny import MIXED

pytest.importorskip("llvmlite", reason="kernels are compiled by it")

from mixoff.chat.kv_cache import growing_cache
from mixoff.kernels import CPUKernels
from mixoff.models.build import build_model
from mixoff.models.layers.attention import OneTokenAttention
from mixoff.models.layers.linear import QuantizedLinear
from mixoff.quantization import HQQ, HQQAxis0, Scheme

HEADS_OF_32 = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
IDS = torch.arange(3, 11)[None]


@pytest.fixture
def build(quantized: Callable[..., Path]) -> Iterator[Callable[..., Any]]:
    """Build models, and close their caches at the end."""
    caches = []

    def make(scheme: Scheme = MIXED, kernels: str = "cpu", **settings: Any) -> Any:
        settings = {**HEADS_OF_32, **settings}
        model, cache = build_model(quantized(scheme, **settings), kernels=kernels)
        caches.append(cache)
        return model

    yield make
    for cache in caches:
        cache.close()


def attentions(model: Any) -> list[Any]:
    return [layer.self_attn for layer in model.model.layers]


@contextmanager
def noting(model: Any) -> Iterator[list[str]]:
    """Note who attends: kernels ("together"), or transformers' module ("own")."""
    noted: list[str] = []

    def note(name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **settings: Any) -> Any:
            found = do(*args, **settings)
            if found is not None:
                noted.append(name)
            return found

        return noting

    kernels = attentions(model)[0].k_proj.kernels
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(kernels, CPUKernels):
            patch.setattr(kernels, "attended", note("together", kernels.attended))
        patch.setattr(MixtralAttention, "forward", note("own", MixtralAttention.forward))
        yield noted


@torch.no_grad()
def decoded(model: Any, past: Any, **settings: Any) -> torch.Tensor:
    """Return logits of tokens that are read one by one behind the first three."""
    model(IDS[:, :3], past_key_values=past, **settings)
    rest = IDS[:, 3:].split(1, dim=1)
    return torch.cat([model(t, past_key_values=past, **settings).logits for t in rest], dim=1)


@torch.no_grad()
def read(model: Any) -> torch.Tensor:
    """Return logits of all tokens but the first three, which are read together."""
    return model(IDS).logits[:, 3:]


def caches(model: Any) -> dict[str, Any]:
    return {
        "growing": growing_cache(model.config),
        "dynamic": DynamicCache(config=model.config),
        "plain": DynamicCache(),
    }


@pytest.mark.parametrize("kind", ["growing", "dynamic", "plain"])
@pytest.mark.parametrize("scheme", [MIXED, Scheme(HQQ(4, 64), MIXED.experts)], ids=str)
def test_tokens_one_by_one_are_attended_together_and_right(build, kind, scheme):
    model = build(scheme)
    with noting(model) as noted:
        found = decoded(model, caches(model)[kind])
    assert noted == ["own"] * 2 + ["together"] * 10
    assert torch.allclose(found, read(model), atol=2e-3)
    plain = build(scheme, kernels="torch")
    assert torch.allclose(found, decoded(plain, DynamicCache()), atol=2e-3)


def test_a_single_token_without_a_cache_attends_to_itself(build):
    model = build()
    with torch.no_grad(), noting(model) as noted:
        found = model(IDS[:, :1], use_cache=False).logits
    assert noted == ["together"] * 2
    with torch.no_grad():
        assert torch.allclose(found, model(IDS[:, :2]).logits[:, :1], atol=2e-3)


def test_bfloat16_is_close(quantized):
    folder = quantized(MIXED, **HEADS_OF_32)
    model, cache = build_model(folder, dtype=torch.bfloat16)
    with noting(model) as noted:
        found = decoded(model, growing_cache(model.config))
    exact, other = build_model(folder)
    expected = decoded(exact, growing_cache(exact.config))
    cache.close()
    other.close()
    assert noted.count("together") == 10
    assert found.dtype is torch.bfloat16
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()


# ---- what is left to the model's own modules


def with_hook(model: Any) -> None:
    model.model.layers[0].self_attn.v_proj.register_forward_hook(lambda *_: None)


def with_pre_hook(model: Any) -> None:
    model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda *_: None)


def with_own_forward(model: Any) -> None:
    module = model.model.layers[0].self_attn.k_proj
    module.forward = module.forward


def with_another_matrix(model: Any) -> None:
    class Adapted(nn.Module):
        def __init__(self, base: QuantizedLinear) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) * 2

    attention = model.model.layers[0].self_attn
    attention.o_proj = Adapted(attention.o_proj)


def in_training(model: Any) -> None:
    model.model.layers[0].self_attn.train()


@pytest.mark.parametrize(
    "change", [with_hook, with_pre_hook, with_own_forward, with_another_matrix, in_training]
)
def test_a_layer_whose_parts_were_changed_goes_through_them(build, change):
    model = build()
    expected = read(model) if change is not with_another_matrix else None
    change(model)
    with noting(model) as noted:
        found = decoded(model, growing_cache(model.config))
    assert noted == ["own"] * 2 + ["own", "together"] * 5
    assert torch.allclose(found, read(model) if expected is None else expected, atol=2e-3)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_another_implementation_of_attention_is_used_if_it_is_set(build, name):
    model = build()
    model.set_attn_implementation(name)
    with noting(model) as noted:
        found = decoded(model, DynamicCache())
    assert {*noted} == {"own"}
    assert torch.allclose(found, read(model), atol=2e-3)


@torch.no_grad()
def test_masks_and_several_replies_are_left_to_the_modules(build):
    model = build()
    mask = torch.ones_like(IDS)
    mask[:, 0] = 0
    past = growing_cache(model.config)
    with noting(model) as noted:
        model(IDS[:, :7], attention_mask=mask[:, :7], past_key_values=past)
        found = model(IDS[:, 7:], attention_mask=mask, past_key_values=past).logits
        model(IDS[:, :2].T, use_cache=False)
    assert {*noted} == {"own"}
    assert torch.allclose(found, model(IDS, attention_mask=mask).logits[:, 7:], atol=2e-3)


def test_matrices_without_these_kernels_are_taken_one_by_one(build):
    model = build(Scheme(HQQAxis0(4, 64), MIXED.experts))
    with noting(model) as noted:
        found = decoded(model, growing_cache(model.config))
    assert {*noted} == {"own"}
    assert torch.allclose(found, read(model), atol=2e-3)


def test_small_heads_are_left_to_the_modules(build):
    model = build(num_attention_heads=8, num_key_value_heads=8)  # of 16
    with noting(model) as noted:
        found = decoded(model, growing_cache(model.config))
    assert {*noted} == {"own"}
    assert torch.allclose(found, read(model), atol=2e-3)


def test_a_cache_of_a_fixed_length_is_read_through_its_mask(build):
    model = build()
    past = StaticCache(config=model.config, max_cache_len=12)
    found = decoded(model, past)
    assert torch.allclose(found, read(model), atol=2e-3)


def test_a_sliding_window_is_kept(build):
    model = build(sliding_window=4)
    found = decoded(model, DynamicCache(config=model.config))
    assert torch.allclose(found, read(model), atol=2e-3)


def test_keys_and_values_of_another_type_are_attended_to(build):
    class Doubles(DynamicCache):
        def update(self, *args: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
            found = super().update(*args, **settings)
            return tuple(part.double() for part in found)  # which kernels don't read

    model = build()
    with torch.no_grad():
        past = Doubles()
        prompt = DynamicCache()
        model(IDS[:, :3], past_key_values=prompt)
        past.layers = prompt.layers
        found = model(IDS[:, 3:4], past_key_values=past).logits
    assert torch.allclose(found, read(model)[:, :1], atol=2e-3)


def attended(attention: Any) -> float:
    """Return the largest number that a token's attention to itself has."""
    x = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(0))
    angles = torch.zeros(1, 1, 32)
    with torch.no_grad():
        found, _ = attention(x, (angles.cos(), angles.sin()), attention_mask=None)
    return float(found.abs().max())


def test_modules_for_one_token_are_transformers_own_with_the_same_parameters(build):
    model, plain = build(), build(kernels="torch")
    replaced = {name: type(module) for name, module in model.named_modules()}
    own = {name: type(module) for name, module in plain.named_modules()}
    assert [*replaced] == [*own]
    assert all(issubclass(replaced[name], own[name]) for name in own)
    assert {replaced[name].__name__ for name in own if replaced[name] is not own[name]} == {
        "HeadWithoutOneDNN",
        "OneTokenAttention",
        "OneTokenNorm",
        "OneTokenRouter",
    }
    state, expected = model.state_dict(), plain.state_dict()
    assert [*state] == [*expected]
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
def test_outputs_of_replaced_modules_are_captured_as_transformers_own(build):
    model, plain = build(), build(kernels="torch")
    for each in (model, plain):
        each.set_attn_implementation("eager")
    asked = {"output_attentions": True, "output_router_logits": True, "output_hidden_states": True}
    outputs, expected = model(IDS[:, :1], **asked), plain(IDS[:, :1], **asked)
    for kind in ("attentions", "router_logits", "hidden_states"):
        pairs = zip(getattr(outputs, kind), getattr(expected, kind), strict=True)
        assert all(torch.allclose(first, second, atol=2e-3) for first, second in pairs)
        assert getattr(outputs, kind)


def test_a_copied_module_attends_with_its_own_matrices(build):
    model = build(num_hidden_layers=1)
    attention = attentions(model)[0]
    attention.o_proj.kernels.reserved_threads = int  # the cache's own would come along, and refuses
    assert attended(attention) > 0  # plans are made, and aren't the copy's
    other = copy.deepcopy(attention)
    assert isinstance(other, OneTokenAttention)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        getattr(other, name).weight.data.zero_()
    assert attended(attention) > 0
    assert attended(other) == 0


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "o_proj"])
def test_a_record_that_is_put_in_place_of_another_is_attended_with(build, name):
    attention = attentions(build())[0]
    before, part = attended(attention), getattr(attention, name)
    record = part.weight.data
    part.weight.data = torch.zeros_like(record)
    if name in ("v_proj", "o_proj"):  # a token that attends to itself alone knows no others
        assert attended(attention) == 0
    part.weight.data = record
    assert attended(attention) == before


@pytest.mark.parametrize("name", ["v_proj", "o_proj"])
def test_records_whose_memory_moves_are_found_where_they_are(build, name):
    attention = attentions(build())[0]
    before, record = attended(attention), getattr(attention, name).weight.data
    record.share_memory_()
    assert attended(attention) == before
    record.zero_()  # and not what lies where they were
    assert attended(attention) == 0


def test_angles_of_another_size_are_refused_as_transformers_does(build):
    attention, angles = attentions(build())[0], torch.zeros(1, 1, 64)
    with torch.no_grad(), pytest.raises(RuntimeError, match="size of tensor"):
        attention(torch.ones(1, 1, 128), (angles.cos(), angles.sin()), attention_mask=None)


def test_a_model_that_goes_leaves_nothing_to_the_garbage_collector(quantized):
    model, cache = build_model(quantized(MIXED, **HEADS_OF_32))
    decoded(model, growing_cache(model.config))
    cache.close()
    parts = (*attentions(model), model.lm_head, model.model.layers[0].mlp.gate)
    known = [weakref.ref(part) for part in parts]
    gc.collect()
    gc.disable()
    try:
        del model, cache, parts
        assert [ref() for ref in known] == [None] * len(known)
    finally:
        gc.enable()


def test_hooks_of_an_experts_activation_are_called(build):
    model, seen = build(), []
    activation = model.model.layers[0].mlp.experts.experts.act_fn
    activation.register_forward_hook(lambda module, args, found: seen.append(found.shape[0]))
    expected = read(model)
    seen.clear()
    found = decoded(model, growing_cache(model.config))
    assert seen.count(1) >= 2 * 5
    assert torch.allclose(found, expected, atol=2e-3)


def test_hooks_of_the_whole_module_are_called(build):
    model, seen = build(), []
    attentions(model)[0].register_forward_hook(lambda module, args, found: seen.append(found[0]))
    decoded(model, growing_cache(model.config))
    assert [part.shape[1] for part in seen] == [3, 1, 1, 1, 1, 1]
