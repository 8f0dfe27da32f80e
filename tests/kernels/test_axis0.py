"""Kernels for groups along the outputs agree with dequantizing, on every instruction set."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers.cache_utils import DynamicCache

from mixoff.config import OffloadConfig
from mixoff.kernels.cpu import operations as cpu
from mixoff.kernels.cpu import steps, threads
from mixoff.kernels.layout import Packed, PackedAxis0
from mixoff.kernels.packed import PackedKernels
from mixoff.kernels.plans import as_packed
from mixoff.models.build import build_model
from mixoff.quantization import HQQAxis0, QuantizedTensor
from support.instruction_sets import ISAS
from support.packed_matrices import of_codes_zero
from support.tiers import examples

FOLDER = Path(__file__).parents[1] / "data" / "released-layout-tiny"


def random_matrix(scheme: HQQAxis0, rows: int, columns: int, seed: int = 0) -> QuantizedTensor:
    """Return a matrix of any codes, scales and zeros, also such as no solver returns."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name, (dtype, shape) in scheme.part_specs((rows, columns)).items():
        if dtype is torch.uint8:
            parts[name] = torch.randint(256, shape, dtype=dtype, generator=generator)
        else:
            size = 255 if name.endswith("zero") else 2**-8
            parts[name] = (torch.rand(shape, generator=generator) * size).to(dtype)
    parts["meta.meta_zero.scale"] *= 2**scheme.nbits
    return QuantizedTensor(scheme, (rows, columns), parts)


def packed(matrix: QuantizedTensor) -> PackedAxis0:
    taken = as_packed(matrix)
    assert isinstance(taken, PackedAxis0)
    return taken


def is_right(y: torch.Tensor, x: torch.Tensor, matrix: QuantizedTensor) -> bool:
    """Return whether errors are those of scaled activations in 16 bits and of float32 sums.

    Sixteen of them share a step: four neighbours in four vectors of 64.
    """
    weight, zeros = matrix.dequantize().double(), of_codes_zero(matrix).double()
    scale = scales(matrix)
    scaled = torch.einsum("tk,nk->tnk", x.double(), scale).abs()
    lanes = torch.nn.functional.pad(scaled, (0, -x.shape[1] % 256)).unflatten(-1, (-1, 4, 16, 4))
    steps = lanes.amax((-3, -1), keepdim=True).expand_as(lanes).flatten(2)[..., : x.shape[1]]
    codes = torch.where(scale == 0, 0, weight / scale).abs()  # less their zeros
    bound = torch.einsum("tnk,nk->tn", steps / 65278, codes)
    bound += 2e-6 * x.double().abs() @ (weight.abs() + 2 * zeros.abs()).T + 1e-37
    return bool(((y.double() - x.double() @ weight.T).abs() <= bound).all())


def scales(matrix: QuantizedTensor) -> torch.Tensor:
    """Return the scale of each weight, [N, K] float64."""
    step, zero = (matrix.parts[f"meta.meta_scale.{name}"].double() for name in ("scale", "zero"))
    of_groups = (matrix.parts["meta.scale_q"].double() - zero) * step
    return of_groups.reshape(1, -1).expand(matrix.quantization.group_size, -1).reshape(matrix.shape)


@st.composite
def cases(draw):
    nbits, group = draw(st.sampled_from((8, 4, 2))), draw(st.sampled_from((8, 16, 24, 64)))
    bundles = draw(st.integers(1, 5))
    columns = draw(st.integers(1, 700) | st.sampled_from((256, 1024, 2560)))
    divisors = [n for n in range(1, bundles * columns + 1) if not bundles * columns % n]
    scheme = HQQAxis0(nbits, group, draw(st.sampled_from(divisors)))
    matrix = random_matrix(scheme, group * bundles, columns, draw(st.integers(0, 99)))
    return matrix, draw(st.integers(1, 4))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=examples(40))
@given(cases())
def test_products_from_packed_weights_are_right(isa, case):
    matrix, tokens = case
    x = torch.randn(tokens, matrix.shape[1], generator=torch.Generator().manual_seed(1))
    assert is_right(cpu.multiply(packed(matrix), x, isa=isa), x, matrix)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", [HQQAxis0(2, 16, 128), HQQAxis0(4, 64, 256)], ids=str)
def test_errors_of_quantized_weights_are_small_beside_the_largest_result(isa, scheme):
    generator = torch.Generator().manual_seed(0)
    matrix = QuantizedTensor.quantize(torch.randn(256, 1024, generator=generator), scheme)
    x = torch.randn(4, 1024, generator=generator)
    expected = x.double() @ matrix.dequantize().double().T
    error = (cpu.multiply(packed(matrix), x, isa=isa) - expected).abs().max()
    assert error < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=examples(40))
@given(cases())
def test_dequantized_weights_are_those_of_torch_to_the_bit(isa, case):
    matrix, _ = case
    for dtype in (torch.float32, torch.bfloat16):
        weight = cpu.dequantize(packed(matrix), dtype, isa=isa)
        assert torch.equal(weight, matrix.dequantize(dtype))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nbits", [8, 4, 2])
def test_many_tokens_are_multiplied_by_rows_that_are_dequantized_a_few_at_a_time(
    isa, dtype, nbits, monkeypatch
):
    monkeypatch.setattr(cpu, "scratch_nbytes", lambda _: 40_000)
    matrix = random_matrix(HQQAxis0(nbits, 16, 6), 96, 336)
    x = torch.randn(33, 336, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = cpu.multiply_dequantized(packed(matrix), x, isa=isa)
    assert y.dtype is dtype
    expected = torch.nn.functional.linear(x, matrix.dequantize(dtype)).float()
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    assert (y.float() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("isa", ISAS)
def test_large_and_tiny_activations_in_one_token_keep_their_precision(isa):
    matrix = random_matrix(HQQAxis0(4, 64, 16), 64, 1024)
    x = torch.randn(3, 1024, generator=torch.Generator().manual_seed(0))
    x[0, :256] *= 1e6
    x[0, 256:512] *= 1e-6
    x[1] = 0
    x[1, 5] = 1e-28
    x[2] *= 1e-38  # too small for a step: they count as 0
    y = cpu.multiply(packed(matrix), x, isa=isa)
    assert is_right(y[:2], x[:2], matrix)
    assert (y[2].abs() < 1e-30).all()


@pytest.mark.parametrize("team", [True, False], ids=["OpenMP", "Python"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("isa", ISAS)
def test_threads_never_change_a_bit(isa, count, team, monkeypatch):
    monkeypatch.setattr(steps, "_LEAST_NBYTES", 1)
    if not team:
        monkeypatch.setattr(threads, "_team", lambda process: None)
    matrix = packed(random_matrix(HQQAxis0(2, 16, 8), 208, 512))
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    alone = cpu.multiply(matrix, x, isa=isa)
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        assert torch.equal(cpu.multiply(matrix, x, isa=isa), alone)
    finally:
        torch.set_num_threads(before)


# ---- which kernels are used


def test_fewer_tokens_are_dequantized_for_than_with_groups_along_the_inputs():
    assert cpu.most_tokens(torch.float32, PackedAxis0) < cpu.most_tokens(torch.float32)


def test_words_and_groups_that_cut_a_column_in_two_have_no_kernels():
    assert as_packed(random_matrix(HQQAxis0(3, 16, 8), 32, 64)) is None
    assert as_packed(random_matrix(HQQAxis0(2, 16, 8), 24, 64)) is None


@pytest.mark.parametrize(("matrices", "calls"), [((Packed,), 0), (cpu.MATRICES, 1)])
def test_kernels_are_called_only_for_types_of_matrices_that_they_have(matrices, calls):
    called = []

    def multiply(matrix: PackedAxis0, x: torch.Tensor, **settings: int) -> torch.Tensor:
        called.append(matrix)
        return cpu.multiply(matrix, x, **settings)

    operations = SimpleNamespace(**{**vars(cpu), "MATRICES": matrices, "multiply": multiply})
    matrix, x = random_matrix(HQQAxis0(2, 16, 8), 32, 256), torch.randn(1, 256)
    y = PackedKernels(operations, "cpu").matmul(matrix, x)
    assert is_right(y, x, matrix)
    assert len(called) == calls


@torch.no_grad()
def test_a_mixtral_offloading_checkpoint_is_decoded_straight_from_its_codes(monkeypatch):
    widths, multiply = set(), cpu._multiply_axis0

    def noted(matrix, x, *settings):
        widths.add((matrix.form.nbits, len(x)))
        return multiply(matrix, x, *settings)

    monkeypatch.setattr(cpu, "_multiply_axis0", noted)
    model, cache = build_model(FOLDER, OffloadConfig(offload_per_layer=4), kernels="cpu")
    past = DynamicCache(config=model.config)
    tokens = load_file(FOLDER / "reference.safetensors")["input_ids"].split(1, dim=1)
    logits = torch.cat([model(token, past_key_values=past).logits for token in tokens], dim=1)
    cache.close()
    assert widths == {(4, 1), (2, 1)}  # attention and experts, token by token
    expected = load_file(FOLDER / "reference_float32.safetensors")["logits"]
    assert (logits - expected).abs().max() < 1e-3 * expected.std()
