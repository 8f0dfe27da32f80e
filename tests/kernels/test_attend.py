"""The kernel for one token's attention returns softmax(q K^T) V, on every instruction set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite", reason="kernels are compiled by it")

from mixoff.kernels.cpu import operations as cpu
from mixoff.kernels.cpu import steps
from support.instruction_sets import ISAS
from support.tiers import examples


def inputs(groups, heads, tokens, size, dtype, seed=0):
    """Return a query, and keys and values in memory for more tokens."""
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn(2, groups, tokens + 7, size, generator=generator).to(dtype)
    query = torch.randn(groups, heads, size, generator=generator)
    return query, memory[0, :, :tokens], memory[1, :, 3 : 3 + tokens]


def expected(query, key, value, scaling):
    scores = query.double() @ key.double().mT * scaling
    return scores.softmax(-1) @ value.double()


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=examples(40), deadline=None)
@given(
    groups=st.integers(1, 9),
    heads=st.integers(1, 6),
    tokens=st.integers(1, 70),
    size=st.sampled_from((16, 48, 128)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    scaling=st.sampled_from((1e-3, 0.1, 3.0)),
)
def test_attention_is_right(isa, groups, heads, tokens, size, dtype, scaling):
    tensors = inputs(groups, heads, tokens, size, dtype, seed=tokens)
    attended = cpu.attend(*tensors, scaling=scaling, isa=isa)
    assert attended.shape == (groups, heads, size)
    assert (attended - expected(*tensors, scaling)).abs().max() < 2e-5


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_share_groups_and_change_no_bit(threads, monkeypatch):
    tensors = inputs(4, 4, 300, 128, torch.bfloat16)
    alone = cpu.attend(*tensors, scaling=0.1)
    monkeypatch.setattr(steps, "_LEAST_NBYTES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(cpu.attend(*tensors, scaling=0.1), alone)
    assert (alone - expected(*tensors, 0.1)).abs().max() < 2e-5


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 17, 49])
def test_nan_and_infinity_in_keys_make_nan_where_softmax_does(bad, place):
    query, key, value = inputs(2, 4, 50, 64, torch.float32)
    key[0, place] = bad
    attended = cpu.attend(query, key, value, scaling=0.1)
    assert torch.equal(attended.isnan(), expected(query, key, value, 0.1).isnan())


@pytest.mark.parametrize("scale", [1e4, 1e-30])
def test_scores_may_be_far_apart_or_all_but_equal(scale):
    query, key, value = inputs(2, 4, 50, 64, torch.float32)
    attended = cpu.attend(query, key, value, scaling=scale)
    assert (attended - expected(query, key, value, scale)).abs().max() < 1e-3


def test_keys_and_values_in_other_layouts_are_refused():
    key = torch.zeros(2, 5, 32)
    assert cpu.attends(key, key)
    assert cpu.attends(key.bfloat16(), key.bfloat16())
    assert not cpu.attends(key, key.bfloat16())
    assert not cpu.attends(key.half(), key.half())
    assert not cpu.attends(key[..., :20], key[..., :20])
    assert not cpu.attends(key.mT.contiguous().mT, key)
    assert not cpu.attends(key[:, :4], key)
    assert not cpu.attends(key.to("meta"), key.to("meta"))
