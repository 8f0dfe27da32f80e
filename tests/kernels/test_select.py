"""Kernels are chosen by name, and multiply whatever weights, types and shapes there are."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch

from mixoff.errors import ConfigError
from mixoff.kernels import GatedActivation, TorchKernels, kernels_named
from mixoff.kernels.layout import Packed
from mixoff.kernels.packed import PackedKernels
from mixoff.quantization import (
    HQQ,
    HQQAxis0,
    Quantization,
    QuantizedTensor,
    StackedRows,
    Unquantized,
)

pytest.importorskip("llvmlite", reason="kernels are compiled by it")

from mixoff.kernels.cpu import operations as cpu
from support.packed_matrices import random_matrix
from support.tiers import diagonal

SCHEMES: list[Quantization] = [
    HQQ(2, 16, 8),
    HQQ(4, 64),
    HQQ(4, 24),  # no power of two: no kernel
    HQQAxis0(2, 16),
    Unquantized("float32"),
]
SHAPES = [(384,), (1, 384), (2, 3, 384), (1, 40, 384)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("kernels", [kernels_named("cpu"), TorchKernels()], ids=["cpu", "torch"])
@pytest.mark.parametrize(("scheme", "shape", "dtype"), diagonal(SCHEMES, SHAPES, DTYPES), ids=str)
def test_any_weights_and_inputs_are_multiplied(kernels, scheme, shape, dtype):
    matrix = QuantizedTensor.quantize(torch.randn(256, 384), scheme)
    x = torch.randn(shape).to(dtype)
    y = kernels.matmul(matrix, x)
    assert (y.shape, y.dtype) == ((*shape[:-1], 256), dtype)
    expected = torch.nn.functional.linear(x.double(), matrix.dequantize().double())
    tolerance = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}[dtype]
    assert torch.allclose(y.double(), expected, atol=tolerance * 4, rtol=0)


def silu_gate(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def tanh_gate(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return gate.tanh() * up


@pytest.mark.parametrize("kernels", [kernels_named("cpu"), TorchKernels()], ids=["cpu", "torch"])
@pytest.mark.parametrize(
    "gate",
    [GatedActivation(silu_gate, True), GatedActivation(tanh_gate, False)],
    ids=["silu", "tanh"],
)
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("above", "below", "pieces"),
    [
        (HQQ(2, 16, 8), HQQ(2, 16, 8), 1),
        (HQQ(4, 64), HQQ(3, 64), 2),
        (HQQ(4, 8), HQQ(4, 24), 1),  # no power of two: no kernel
        (HQQ(4, 64), HQQAxis0(2, 16), 1),
    ],
    ids=str,
)
def test_experts_compute_their_matrices_and_gates(
    kernels, gate, tokens, dtype, above, below, pieces
):
    torch.manual_seed(0)
    weights = torch.randn(384, 192).div(8).chunk(pieces)
    parts = tuple(QuantizedTensor.quantize(part, above) for part in weights)
    gate_up = StackedRows(parts) if pieces > 1 else parts[0]
    down = QuantizedTensor.quantize(torch.randn(192, 192) / 8, below)
    x = torch.randn(tokens, 192).to(dtype)
    inner = gate.apply(x.double() @ gate_up.dequantize().double().T)
    expected = inner @ down.dequantize().double().T
    for _ in range(2):
        y = kernels.feed_forward(gate_up, down, x, gate)
        assert (y.shape, y.dtype) == ((tokens, 192), dtype)
        error = (y - expected).abs().max() / expected.abs().max()
        assert error < {torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]


def test_an_expert_in_another_type_or_at_another_address_is_planned_again():
    kernels, gate = kernels_named("cpu"), GatedActivation(silu_gate, True)
    down = random_matrix(HQQ(2, 16, 8), 64, 96, 0)
    for seed in range(3):
        gate_up = random_matrix(HQQ(2, 16, 8), 192, 64, seed)
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed)).to(dtype) / 99
            y = kernels.feed_forward(gate_up, down, x, gate)
            steps = kernels.matmul(down, silu_gate(kernels.matmul(gate_up, x.float())))
            assert torch.allclose(y.float(), steps, rtol=2e-2, atol=1e-2 * steps.abs().max())
        del gate_up  # the next may lie at its address


def test_other_scales_for_the_same_codes_are_planned_again():
    kernels, gate = kernels_named("cpu"), GatedActivation(silu_gate, True)
    gate_up, down = random_matrix(HQQ(4, 64), 256, 64, 0), random_matrix(HQQ(4, 64), 64, 128, 1)
    parts = {**gate_up.parts, "scale": gate_up.parts["scale"] * 2}
    scaled = QuantizedTensor(gate_up.quantization, gate_up.shape, parts)
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    before = kernels.feed_forward(gate_up, down, x, gate)
    after = kernels.feed_forward(scaled, down, x, gate)
    steps = kernels.matmul(down, silu_gate(kernels.matmul(scaled, x)))
    assert torch.allclose(after, steps, rtol=1e-3)
    assert not torch.allclose(after, before, rtol=0.1)


def test_a_copied_matrix_is_multiplied_by_its_own_parts():
    kernels, gate = kernels_named("cpu"), GatedActivation(silu_gate, True)
    gate_up, down = random_matrix(HQQ(4, 64), 256, 64, 0), random_matrix(HQQ(4, 64), 64, 128, 1)
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    expected = kernels.feed_forward(gate_up, down, x, gate)
    copied = copy.deepcopy(down)
    copied.parts["W_q"].zero_()
    assert torch.equal(kernels.feed_forward(gate_up, down, x, gate), expected)
    assert not torch.equal(kernels.feed_forward(gate_up, copied, x, gate), expected)


def test_inputs_of_a_wrong_width_are_refused():
    kernels, gate = kernels_named("cpu"), GatedActivation(silu_gate, True)
    gate_up, down = random_matrix(HQQ(4, 64), 256, 64, 0), random_matrix(HQQ(4, 64), 64, 128, 1)
    for wrong in (63, 128):
        with pytest.raises(RuntimeError, match="shapes"):
            kernels.matmul(gate_up, torch.zeros(1, wrong))
        with pytest.raises(RuntimeError, match="shapes"):
            kernels.feed_forward(gate_up, down, torch.zeros(1, wrong), gate)


def test_rows_in_several_pieces_are_one_matrix():
    pieces = tuple(random_matrix(HQQ(4, 64), rows, 256, rows) for rows in (24, 9))
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    y = kernels_named("cpu").matmul(StackedRows(pieces), x)
    weight = torch.cat([piece.dequantize() for piece in pieces])
    assert torch.allclose(y, x @ weight.T, rtol=1e-3, atol=1e-2)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="kernels='fast': give one of auto, cpu, torch, triton"):
        kernels_named("fast")


def test_without_llvmlite_torch_multiplies_and_kernels_by_name_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "mixoff.kernels.cpu.one_token", None)
    assert isinstance(kernels_named("auto"), TorchKernels)
    with pytest.raises(ConfigError, match=r"kernels='cpu': llvmlite .* mixoff\[cpu\]"):
        kernels_named("cpu")


def test_the_threads_to_reserve_are_counted_anew_for_each_product():
    reserved = []

    def multiply(matrix: Packed, x: torch.Tensor, *, reserved_threads: int = 0) -> torch.Tensor:
        reserved.append(reserved_threads)
        return cpu.multiply(matrix, x, reserved_threads=reserved_threads)

    operations = SimpleNamespace(**{**vars(cpu), "multiply": multiply})
    kernels = PackedKernels(operations, "cpu")
    matrix = random_matrix(HQQ(4, 64), 64, 256, 0)
    x = torch.randn(1, 256)
    idle = kernels.matmul(matrix, x)
    kernels.reserved_threads = lambda: 1
    assert torch.equal(kernels.matmul(matrix, x), idle)
    assert reserved == [0, 1]
