"""Plans follow the matrices of each call, keep none of their memory, and are bounded."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

from mixoff.kernels import GatedActivation, kernels_named
from mixoff.kernels import plans as plans_module
from mixoff.quantization import HQQ, PackedMatrix, QuantizedTensor, StackedRows
from mixoff.tiers.record import RecordLayout
from support.packed_matrices import random_matrix

pytest.importorskip("llvmlite", reason="kernels are compiled by it")

HIDDEN, INNER = 64, 128
SCHEMES = (HQQ(2, 16, 8), HQQ(4, 64), HQQ(4, 32), HQQ(8, 64))


def silu_gate(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


GATE = GatedActivation(silu_gate, True)
X = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(0)) / 9


def expert(scheme: HQQ, seed: int) -> tuple[PackedMatrix, PackedMatrix]:
    up = random_matrix(scheme, 2 * INNER, HIDDEN, seed)
    return up, random_matrix(scheme, HIDDEN, INNER, seed + 50)


def is_right(kernels, gate_up: PackedMatrix, down: PackedMatrix) -> bool:
    y = kernels.feed_forward(gate_up, down, X, GATE)
    exact = silu_gate(X.double() @ gate_up.dequantize().double().T)
    exact = exact @ down.dequantize().double().T
    return bool((y - exact).abs().max() <= 1e-3 * exact.abs().max())


def test_a_record_in_another_form_or_with_other_content_at_one_address_is_read_as_it_is():
    kernels, record = kernels_named("cpu"), torch.zeros(1 << 16, dtype=torch.uint8)
    for seed, scheme in enumerate((*SCHEMES, *SCHEMES)):
        shapes = (("up", (2 * INNER, HIDDEN)), ("down", (HIDDEN, INNER)))
        layout = RecordLayout(scheme, shapes)
        packed = layout.pack(dict(zip(("up", "down"), expert(scheme, seed), strict=True)))
        record[: layout.nbytes] = packed
        matrices = layout.tensors(record)
        assert is_right(kernels, matrices["up"], matrices["down"])


@pytest.mark.parametrize("name", ["W_q", "scale", "zero", "pairs"])
def test_a_part_that_is_replaced_is_read_at_its_new_address(name):
    kernels = kernels_named("cpu")
    gate_up, down = expert(HQQ(2, 16, 8), 0)
    before = kernels.feed_forward(gate_up, down, X, GATE)
    other = random_matrix(HQQ(2, 16, 8), HIDDEN, INNER, 99)
    replaced = QuantizedTensor(
        down.quantization, down.shape, {**down.parts, name: other.parts[name]}
    )
    assert is_right(kernels, gate_up, replaced)
    assert torch.equal(kernels.feed_forward(gate_up, down, X, GATE), before)


def test_matrices_that_take_different_activations_have_no_plan_together():
    kernels = kernels_named("cpu")
    pieces = tuple(random_matrix(scheme, INNER, HIDDEN, 3) for scheme in (HQQ(4, 8), HQQ(4, 64)))
    down = random_matrix(HQQ(4, 64), HIDDEN, INNER, 4)
    for _ in range(2):
        assert is_right(kernels, StackedRows(pieces), down)


def test_plans_keep_no_memory_of_matrices():
    kernels = kernels_named("cpu")
    matrices = expert(HQQ(4, 64), 0)
    parts = [weakref.ref(part) for matrix in matrices for part in matrix.parts.values()]
    assert is_right(kernels, *matrices)
    gc.disable()
    try:
        del matrices
        assert [part() for part in parts] == [None] * len(parts)
    finally:
        gc.enable()


def test_more_plans_than_the_bound_are_made_again(monkeypatch):
    monkeypatch.setattr(plans_module, "_MOST_PLANS", 3)
    kernels = kernels_named("cpu")
    experts = [expert(SCHEMES[seed % 4], seed) for seed in range(7)]
    for _ in range(2):
        for matrices in experts:
            assert is_right(kernels, *matrices)
            assert 1 <= len(kernels._feed_forward_plans._plans) <= 3


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))])
def test_copied_kernels_make_plans_of_their_own(duplicate):
    kernels, matrices = kernels_named("cpu"), expert(HQQ(4, 64), 0)
    assert is_right(kernels, *matrices)
    copied = duplicate(kernels)
    assert not copied._feed_forward_plans._plans
    assert is_right(copied, *matrices)
