"""Matrices in the layout that mixtral-offloading released are restored as it defines them."""

import pytest
import torch

from mixoff.errors import ConfigError
from mixoff.quantization import HQQAxis0, QuantizedTensor, quantization_from_dict
from mixoff.tiers.record import RecordLayout
from support.mixtral_offloading_writer import Bits
from support.random_weights import weights

ALL_BITS = [
    Bits(8, 64, 32),
    Bits(4, 64, 64),
    Bits(3, 64, 32),
    Bits(3, 24, 128),
    Bits(2, 16, 128),
    Bits(2, 8, 1),
]
SHAPE = (48, 256)


def scheme_of(bits: Bits) -> HQQAxis0:
    return HQQAxis0(bits.nbits, bits.group_size, bits.scale_group_size)


@pytest.mark.parametrize("bits", ALL_BITS, ids=str)
def test_tensors_of_an_independent_writer_give_its_matrix(bits):
    parts, expected = bits.quantize(weights(*SHAPE))
    specs = {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()}
    scheme = HQQAxis0.read_off(specs, SHAPE)
    assert scheme == scheme_of(bits)
    assert torch.equal(scheme.dequantize(parts, SHAPE, torch.float32), expected)
    assert torch.equal(scheme.dequantize(parts, SHAPE, torch.float16), expected.half())


@pytest.mark.parametrize("bits", ALL_BITS, ids=str)
def test_codes_are_those_of_hqq(bits):
    ours, theirs = scheme_of(bits).quantize(weights(*SHAPE)), bits.quantize(weights(*SHAPE))[0]
    assert torch.equal(ours["W_q"], theirs["W_q"])


@pytest.mark.parametrize("bits", ALL_BITS, ids=str)
def test_the_parts_have_the_types_and_shapes_of_part_specs(bits):
    parts = scheme_of(bits).quantize(weights(*SHAPE))
    specs = {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()}
    assert specs == scheme_of(bits).part_specs(SHAPE)


def test_more_bits_make_a_smaller_error():
    weight = weights(*SHAPE)
    errors = [
        (QuantizedTensor.quantize(weight, HQQAxis0(nbits, 64, 64)).dequantize() - weight).norm()
        for nbits in (2, 3, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)


def test_an_expert_of_the_released_2_bits_takes_66_4_megabytes():
    shapes = (("w1", (14336, 4096)), ("w2", (4096, 14336)), ("w3", (14336, 4096)))
    assert RecordLayout(HQQAxis0(2, 16, 128), shapes).nbytes == pytest.approx(66.4e6, rel=1e-3)


def test_the_quantization_is_restored_from_its_settings():
    scheme = HQQAxis0(3, 64, 128)
    assert quantization_from_dict(scheme.to_dict()) == scheme


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nbits": 5}, "nbits=5: give one of 8, 4, 3, 2"),
        ({"nbits": 4.0}, r"nbits=4\.0: give one of"),
        ({"group_size": 12}, "group_size=12: give a multiple of 8"),
        ({"group_size": 0}, "group_size=0: give a multiple of 8"),
        ({"scale_group_size": 0}, "scale_group_size=0: give a whole number above 0"),
    ],
    ids=str,
)
def test_an_invalid_setting_is_refused_with_the_valid_ones(settings, message):
    with pytest.raises(ConfigError, match=message):
        HQQAxis0(**settings)


@pytest.mark.parametrize(
    "scheme", [HQQAxis0(2, 40, 1), HQQAxis0(2, 16, 5), HQQAxis0(2, 16, 999)], ids=str
)
def test_groups_that_do_not_divide_the_matrix_are_refused(scheme):
    with pytest.raises(ConfigError, match="a 48 x 256 matrix can't be divided into such groups"):
        scheme.quantize(weights(*SHAPE))


def test_scales_that_start_far_from_zero_keep_their_value():
    weight = weights(*SHAPE) * 1e-4 + 0.02
    restored = QuantizedTensor.quantize(weight, HQQAxis0(4, 64, 64)).dequantize()
    assert (restored - weight).abs().max() < 1e-3
