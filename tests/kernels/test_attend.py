"""The kernel for one token's attention gives what softmax(q K^T) V is, on every instruction set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite", reason="kernels are compiled by it")

from mixoff.kernels.cpu import operations as cpu
from mixoff.kernels.cpu import steps
from support.packed_matrices import ISAS
from support.tiers import examples


def inputs(groups, heads, tokens, size, dtype, seed=0):
    """Return a query, and keys and values in memory with room for more."""
    generator = torch.Generator().manual_seed(seed)
    room = torch.randn(2, groups, tokens + 7, size, generator=generator).to(dtype)
    query = torch.randn(groups, heads, size, generator=generator)
    return query, room[0, :, :tokens], room[1, :, 3 : 3 + tokens]


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
    given = inputs(groups, heads, tokens, size, dtype, seed=tokens)
    found = cpu.attend(*given, scaling=scaling, isa=isa)
    assert found.shape == (groups, heads, size)
    assert (found - expected(*given, scaling)).abs().max() < 2e-5


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_share_groups_and_change_no_bit(threads, monkeypatch):
    given = inputs(4, 4, 300, 128, torch.bfloat16)
    alone = cpu.attend(*given, scaling=0.1)
    monkeypatch.setattr(steps, "_LEAST_NBYTES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(cpu.attend(*given, scaling=0.1), alone)
    assert (alone - expected(*given, 0.1)).abs().max() < 2e-5


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 17, 49])
def test_what_is_no_number_stays_none(bad, place):
    query, key, value = inputs(2, 4, 50, 64, torch.float32)
    key[0, place] = bad
    found = cpu.attend(query, key, value, scaling=0.1)
    assert torch.equal(found.isnan(), expected(query, key, value, 0.1).isnan())


@pytest.mark.parametrize("scale", [1e4, 1e-30])
def test_scores_may_be_far_apart_or_all_but_equal(scale):
    query, key, value = inputs(2, 4, 50, 64, torch.float32)
    found = cpu.attend(query, key, value, scaling=scale)
    assert (found - expected(query, key, value, scale)).abs().max() < 1e-3


def test_what_it_cannot_read_is_refused():
    key = torch.zeros(2, 5, 32)
    assert cpu.attends(key, key)
    assert cpu.attends(key.bfloat16(), key.bfloat16())
    assert not cpu.attends(key, key.bfloat16())
    assert not cpu.attends(key.half(), key.half())
    assert not cpu.attends(key[..., :20], key[..., :20])
    assert not cpu.attends(key.mT.contiguous().mT, key)
    assert not cpu.attends(key[:, :4], key)
    assert not cpu.attends(key.to("meta"), key.to("meta"))
