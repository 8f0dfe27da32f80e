"""One token's attention by groups of heads is what transformers' sdpa computes."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mixoff.models import build as builder
from mixoff.models.layers import sdpa as attention
from mixoff.models.layers.sdpa import NAME, attend
from support.tiers import examples
from support.tiny import EXACT, MIXED

SIZE = 16


def inputs(batch: int, groups: int, share: int, tokens: int, length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, groups * share, tokens), *[(batch, groups, length)] * 2]
    return [torch.randn(*shape, SIZE, generator=generator) for shape in shapes]


def module(share: int) -> SimpleNamespace:
    return SimpleNamespace(num_key_value_groups=share, is_causal=True)


@settings(max_examples=examples(60))
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    share=st.integers(1, 4),
    tokens=st.integers(1, 3),
    more=st.integers(0, 40),
    masked=st.sampled_from(("no mask", "one for all heads", "one for each head")),
)
def test_results_are_those_of_transformers(batch, groups, share, tokens, more, masked):
    length = tokens + more
    q, k, v = inputs(batch, groups, share, tokens, length)
    mask = None
    if masked != "no mask":
        heads = 1 if masked == "one for all heads" else groups * share
        mask = torch.rand(batch, heads, tokens, length) < 0.7
        mask[..., 0] = True
    given = {"scaling": 0.3, "dropout": 0.0, "sliding_window": None}
    expected, _ = sdpa_attention_forward(module(share), q, k, v, mask, **given)
    found, weights = attend(module(share), q, k, v, mask, **given)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)
    assert weights is None


def test_one_token_is_not_left_to_transformers(monkeypatch):
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)
    attend(module(4), *inputs(1, 2, 4, 1, 30), None)
    with pytest.raises(TypeError):
        attend(module(4), *inputs(1, 2, 4, 2, 30), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "masked", "by_kernel"), [(1, False, True), (1, True, False), (2, False, False)]
)
def test_a_kernel_takes_one_token_without_a_mask(monkeypatch, batch, masked, by_kernel, dtype):
    cpu = pytest.importorskip("mixoff.kernels.cpu.operations", exc_type=ImportError)
    taken = []

    def attend_noting(*args, **settings):
        taken.append(args)
        return cpu.attend(*args, **settings)

    noting = SimpleNamespace(attends=cpu.attends, attend=attend_noting)
    monkeypatch.setattr(attention, "attention_operations", lambda: noting)
    q, k, v = (part.to(dtype) for part in inputs(batch, 2, 4, 1, 30))
    mask = torch.ones(batch, 1, 1, 30, dtype=torch.bool) if masked else None
    found, _ = attend(module(4), q, k, v, mask, scaling=0.3)
    expected, _ = sdpa_attention_forward(module(4), q, k, v, mask, scaling=0.3)
    assert bool(taken) is by_kernel
    assert found.dtype is dtype
    assert torch.allclose(found, expected, atol=1e-5 if dtype is torch.float32 else 2e-2)


@pytest.mark.parametrize(
    ("kernels", "scheme", "asked", "used"),
    [
        ("cpu", MIXED, "sdpa", NAME),
        ("cpu", MIXED, "eager", "eager"),
        ("cpu", EXACT, "sdpa", "sdpa"),
        ("torch", MIXED, "sdpa", "sdpa"),
    ],
)
@torch.no_grad()
def test_kernels_of_quantized_models_come_with_it_unless_another_was_asked_for(
    quantized, monkeypatch, kernels, scheme, asked, used
):
    if kernels == "cpu":
        pytest.importorskip("llvmlite", reason="kernels are compiled by it")
    folder = quantized(scheme)
    if asked == "eager":
        own = builder._settings

        def eager(checkpoint):
            config = own(checkpoint)
            config._attn_implementation = "eager"
            return config

        monkeypatch.setattr(builder, "_settings", eager)
    model, cache = builder.build_model(folder, kernels=kernels)
    assert model.config._attn_implementation == used
    ids = torch.arange(6)[None]
    logits = model(ids).logits
    past = model(ids[:, :5]).past_key_values
    last = model(ids[:, 5:], past_key_values=past).logits
    cache.close()
    assert torch.allclose(last[:, -1], logits[:, -1], atol=1e-3)
