"""Dequantized matrices equal those of hqq's own layer, to the rounding of their scales."""

import pytest
import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from torch import Tensor, nn

from mixoff.errors import ConfigError
from mixoff.kernels import TorchKernels
from mixoff.quantization import (
    HQQ,
    Quantization,
    QuantizedTensor,
    Unquantized,
)
from mixoff.quantization.packing import BITS
from support.random_weights import weights

HALF = 2**-11  # the largest relative error of rounding to float16
SETTINGS = [  # nbits, group_size, columns; 2,080 columns in groups of 16 are 130 groups: 128 and 2
    *((nbits, 64, 256) for nbits in BITS),
    *((nbits, 16, 2080) for nbits in BITS),
    *((nbits, 128, 384) for nbits in BITS),
]


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return layer


def hqq_parts(weight: Tensor, nbits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes [N, G, group_size], scales and zeros [N, G, 1] of hqq's own layer."""
    config = BaseQuantizeConfig(nbits=nbits, group_size=group_size, axis=1)
    layer = HQQLinear(linear(weight), config, compute_dtype=torch.float32, device="cpu")
    scale, zero = (layer.meta[name].view(len(weight), -1, 1) for name in ("scale", "zero"))
    shape = (*scale.shape[:2], group_size)
    codes = layer.dequantize().view(shape) / scale + zero
    return codes.round(), scale, zero


def quantize(weight: Tensor, nbits: int, group_size: int, scale_nbits: int = 16) -> QuantizedTensor:
    return QuantizedTensor.quantize(weight, HQQ(nbits, group_size, scale_nbits))


def error(weight: Tensor, scheme: Quantization) -> float:
    quantized = QuantizedTensor.quantize(weight, scheme)
    return (quantized.dequantize() - weight).abs().mean().item()


@pytest.mark.parametrize(("nbits", "group_size", "columns"), SETTINGS)
def test_weights_are_those_of_hqqs_layer_to_the_rounding_of_16_bit_scales(
    nbits, group_size, columns
):
    weight = weights(columns=columns)
    codes, scale, zero = hqq_parts(weight, nbits, group_size)
    ours = quantize(weight, nbits, group_size).dequantize().view(codes.shape)
    # w = (code - zero) * scale: each of scale and zero may be off by HALF of itself.
    bound = 1.01 * HALF * scale.abs() * ((codes - zero).abs() + zero.abs())
    assert ((ours - (codes - zero) * scale).abs() <= bound).all()


@pytest.mark.parametrize(("nbits", "group_size", "columns"), SETTINGS)
def test_8_bit_scales_are_off_by_half_a_step_of_their_128_groups_at_most(
    nbits, group_size, columns
):
    weight = weights(columns=columns)
    codes, scale, zero = hqq_parts(weight, nbits, group_size)
    ours = quantize(weight, nbits, group_size, scale_nbits=8).dequantize().view(codes.shape)
    scale_error, zero_error = half_a_step(scale), half_a_step(zero)
    bound = scale_error * ((codes - zero).abs() + zero_error) + scale * zero_error
    assert ((ours - (codes - zero) * scale).abs() <= 1.01 * bound + 1e-6).all()


def half_a_step(values: Tensor) -> Tensor:
    """Return half of a 255th of the range of each 128 groups, [N, G, 1]."""
    ranges = [(b.amax(1) - b.amin(1)).expand(-1, b.shape[1]) for b in values.split(128, dim=1)]
    return torch.cat(ranges, dim=1)[..., None] / 510


@pytest.mark.parametrize("group_size", [16, 64, 128])
@pytest.mark.parametrize("scale_nbits", [16, 8])
def test_more_bits_make_a_smaller_error(group_size, scale_nbits):
    errors = [error(weights(), HQQ(nbits, group_size, scale_nbits)) for nbits in (2, 3, 4, 8)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("nbits", BITS)
def test_smaller_groups_make_a_smaller_error(nbits):
    errors = [error(weights(), HQQ(nbits, group_size)) for group_size in (16, 64, 128)]
    assert errors == sorted(errors)


@pytest.mark.parametrize("scheme", [HQQ(3, 64), HQQ(2, 16, 8), Unquantized("float32")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_matmul_is_a_linear_layer_with_the_dequantized_matrix(scheme, dtype):
    quantized = QuantizedTensor.quantize(weights(), scheme)
    x = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = nn.functional.linear(x, quantized.dequantize(dtype))
    assert torch.equal(TorchKernels().matmul(quantized, x), expected)


@pytest.mark.parametrize("nbits", BITS)
@pytest.mark.parametrize("scale_nbits", [16, 8])
def test_a_matrix_of_zeros_is_restored_as_zeros(nbits, scale_nbits):
    zeros = torch.zeros(8, 64)
    assert torch.equal(quantize(zeros, nbits, 16, scale_nbits).dequantize(), zeros)


@pytest.mark.parametrize("constant", [1e-8, 0.25, -3.0, 100.0])
@pytest.mark.parametrize("nbits", BITS)
def test_groups_without_a_range_keep_their_value(nbits, constant):
    weight = weights(8, 64)
    weight[:, 16:32] = constant
    group = quantize(weight, nbits, 16).dequantize()[:, 16:32]
    torch.testing.assert_close(group, weight[:, 16:32], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale_nbits", [16, 8])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(value, scale_nbits):
    weight = weights()
    weight[3, 7] = value
    with pytest.raises(ConfigError, match=r"12 x 256 matrix .* aren't finite.* Unquantized"):
        quantize(weight, 4, 64, scale_nbits)


def test_a_group_too_far_from_zero_for_its_range_is_refused():
    weight = torch.full((8, 64), 10.0) + torch.linspace(0, 1e-3, 64)
    with pytest.raises(ConfigError, match="too far from zero"):
        quantize(weight, 4, 64)


def test_a_view_into_a_larger_matrix_is_quantized_as_its_copy_is():
    view = weights(columns=512)[:, 100:356]
    copy = view.contiguous()
    assert torch.equal(quantize(view, 4, 64).dequantize(), quantize(copy, 4, 64).dequantize())


def test_2_bits_in_groups_of_16_with_8_bit_scales_take_3_and_a_sixteenth_bits_a_weight():
    assert HQQ(2, 16, scale_nbits=8).nbits_per_weight((14336, 4096)) == 3.0625


@pytest.mark.parametrize(
    "scheme", [HQQ(nbits, 16, bits) for nbits in BITS for bits in (16, 8)], ids=str
)
def test_the_parts_have_the_types_and_shapes_of_part_specs(scheme):
    parts = scheme.quantize(weights(13, 2080))
    specs = {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()}
    assert specs == scheme.part_specs((13, 2080))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nbits": 5}, r"nbits=5: give one of 8, 4, 3, 2"),
        ({"nbits": 4.0}, r"nbits=4\.0: give one of"),
        ({"nbits": "4"}, r"nbits='4': give one of"),
        ({"group_size": 0}, r"group_size=0: give a whole number above 0"),
        ({"group_size": 16.0}, r"group_size=16\.0: give a whole number"),
        ({"scale_nbits": 4}, r"scale_nbits=4: give 16 or 8"),
    ],
    ids=str,
)
def test_an_invalid_setting_is_refused_with_the_valid_ones(settings, message):
    with pytest.raises(ConfigError, match=message):
        HQQ(**settings)


def test_a_group_that_does_not_divide_the_row_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"group_size=48 does not divide the 256 inputs"):
        quantize(weights(), 4, 48)


def test_nbytes_counts_every_part():
    codes, scales, zeros = 8 * 64 // 2, 2 * 8, 2 * 8
    assert quantize(weights(8, 64), 4, 64).nbytes == codes + scales + zeros
