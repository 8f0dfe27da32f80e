"""Routers and norms compute one token as transformers' do, on every instruction set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm, MixtralTopKRouter

from support.tiers import examples
from support.tiny import EXACT, MIXED

pytest.importorskip("llvmlite", reason="kernels are compiled by it")

from mixoff.kernels.cpu import router_norm
from mixoff.models.build import build_model
from mixoff.models.layers.router_norm import OneTokenNorm, OneTokenRouter
from support.instruction_sets import ISAS

DTYPES = (torch.float32, torch.bfloat16)


def random_numbers(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def router(experts: int, top_k: int, columns: int, dtype: torch.dtype) -> MixtralTopKRouter:
    config = MixtralConfig(
        hidden_size=columns, num_local_experts=experts, num_experts_per_tok=top_k
    )
    module = MixtralTopKRouter(config).to(dtype)
    weight = random_numbers(experts, columns, seed=1, dtype=dtype)
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=examples(40), deadline=None)
@given(
    experts=st.integers(1, 20),
    columns=st.sampled_from((64, 192, 4096)),
    top_k=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_a_router_chooses_as_transformers_does(isa, experts, columns, top_k, dtype, seed):
    top_k = min(top_k, experts)
    own = router(experts, top_k, columns, dtype)
    x = random_numbers(1, columns, seed=seed, dtype=dtype)
    logits, shares, chosen = router_norm.route(x, own.weight, top_k, isa=isa)
    expected = x.double() @ own.weight.double().T
    rounding = 1e-5 if dtype is torch.float32 else 4e-3
    size = x.double().norm() * own.weight.double().norm(dim=1).max()
    assert (logits.dtype, shares.dtype, chosen.dtype) == (dtype, torch.float32, torch.int64)
    assert (logits - expected).abs().max() <= rounding * size
    assert chosen.shape == shares.shape == (1, top_k)
    largest = logits[0, chosen[0]]
    assert len({*chosen[0].tolist()}) == top_k
    assert torch.equal(largest, logits[0].sort(descending=True).values[:top_k])
    assert torch.allclose(shares[0], largest.float().softmax(-1), atol=1e-6)


def test_a_whole_router_is_transformers_own():
    for dtype in DTYPES:
        own = router(8, 2, 256, dtype)
        x = random_numbers(1, 1, 256, seed=3, dtype=dtype)
        expected = own(x)
        own.__class__ = OneTokenRouter
        for part, right in zip(own(x), expected, strict=True):
            assert (part.shape, part.dtype) == (right.shape, right.dtype)
            assert torch.allclose(part, right, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_of_equal_logits_and_of_nan_the_first_are_chosen(isa):
    weight = torch.ones(5, 64)
    weight[3] = 2
    _, shares, chosen = router_norm.route(torch.ones(1, 64), weight, 3, isa=isa)
    assert chosen.tolist() == [[3, 0, 1]]
    _, shares, chosen = router_norm.route(torch.full((1, 64), torch.nan), weight, 3, isa=isa)
    assert sorted(chosen[0].tolist()) == [0, 1, 2]
    assert shares.isnan().all()


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=examples(30), deadline=None)
@given(
    columns=st.sampled_from((64, 320, 4096)),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from((1e-6, 1.0, 1e3)),
    epsilon=st.sampled_from((1e-5, 1e-6)),
    seed=st.integers(0, 99),
)
def test_norms_are_transformers_own(isa, columns, dtype, size, epsilon, seed):
    own = MixtralRMSNorm(columns, eps=epsilon).to(dtype)
    own.weight = nn.Parameter(random_numbers(columns, seed=1, dtype=dtype), requires_grad=False)
    x = (random_numbers(1, 1, columns, seed=seed, dtype=torch.float32) * size).to(dtype)
    normalized = router_norm.normalize(x, own.weight, epsilon, isa=isa)
    assert (normalized.shape, normalized.dtype) == (x.shape, dtype)
    close = {"rtol": 1e-5} if dtype is torch.float32 else {"rtol": 1.6e-2}  # a step or two
    assert torch.allclose(normalized, own(x), atol=1e-7, **close)


def grad(x: torch.Tensor) -> torch.Tensor:
    return x.clone().requires_grad_()


X = torch.ones(1, 1, 64)


@pytest.mark.parametrize(
    "x",
    [torch.ones(1, 2, 64), torch.ones(2, 1, 64), X.double(), X.half(), X.bfloat16(), grad(X)],
    ids=["tokens", "batch", "double", "half", "another type", "gradient"],
)
def test_what_kernels_do_not_take_is_left_to_transformers(x, monkeypatch):
    weight = torch.ones(64)
    assert router_norm.takes_whole(X, weight)
    assert not router_norm.takes_whole(x, weight)
    assert not router_norm.takes_whole(X[..., :40], weight[:40])
    assert not router_norm.takes_whole(X, torch.ones(128)[::2])
    assert not router_norm.takes_whole(X, weight.requires_grad_())
    monkeypatch.setattr(router_norm, "normalize", None)
    monkeypatch.setattr(router_norm, "route", None)
    norm = MixtralRMSNorm(64).to(x.dtype if x.dtype is not torch.bfloat16 else torch.float32)
    norm.__class__ = OneTokenNorm
    assert norm(x).shape == x.shape
    with pytest.raises(TypeError):
        norm.float().requires_grad_(False)(X)


@pytest.mark.parametrize(
    ("kernels", "scheme", "replaced"),
    [("cpu", MIXED, True), ("cpu", EXACT, False), ("torch", MIXED, False)],
)
def test_parts_are_replaced_where_kernels_compute(quantized, kernels, scheme, replaced):
    model, cache = build_model(quantized(scheme), kernels=kernels)
    cache.close()
    norms = [module for module in model.modules() if isinstance(module, MixtralRMSNorm)]
    routers = [layer.mlp.gate for layer in model.model.layers]
    assert len(norms) == 2 * len(routers) + 1
    assert {type(norm) is OneTokenNorm for norm in norms} == {replaced}
    assert {type(router) is OneTokenRouter for router in routers} == {replaced}


def test_a_model_still_returns_its_routers_logits(quantized):
    model, cache = build_model(quantized(MIXED))
    with torch.no_grad():
        output = model(torch.tensor([[5]]), output_router_logits=True, output_hidden_states=True)
    cache.close()
    assert [part.shape for part in output.router_logits] == [(1, 8)] * 2
    assert len(output.hidden_states) == 3
