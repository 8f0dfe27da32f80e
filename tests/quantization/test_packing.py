"""Unpacking restores packed codes, and the packed layout is that of hqq."""

import pytest
import torch
from hqq.core.bitpack import BitPack
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixoff.quantization.packing import (
    BITS,
    pack,
    pack_words,
    packed_shape,
    packed_words_shape,
    unpack,
    unpack_words,
)

HQQ_PACK = {8: BitPack.pack_8bit_u8, 4: BitPack.pack_4bit_u8, 2: BitPack.pack_2bit_u8}

any_bits = st.sampled_from(BITS)
any_rows = st.integers(1, 40)
any_columns = st.integers(1, 12)
any_seed = st.integers(0, 2**32 - 1)


def random_codes(rows: int, columns: int, nbits: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**nbits, (rows, columns), generator=generator, dtype=torch.uint8)


@given(nbits=any_bits, rows=any_rows, columns=any_columns, seed=any_seed)
def test_unpacking_returns_the_codes_that_were_packed(nbits, rows, columns, seed):
    codes = random_codes(rows, columns, nbits, seed)
    assert torch.equal(unpack(pack(codes, nbits), nbits, rows), codes)


@given(nbits=any_bits, rows=any_rows, columns=any_columns)
def test_packed_bytes_have_the_shape_of_packed_shape(nbits, rows, columns):
    packed = pack(random_codes(rows, columns, nbits), nbits)
    assert tuple(packed.shape) == packed_shape(rows, columns, nbits)


@given(nbits=any_bits, rows=any_rows, columns=any_columns)
def test_rows_are_padded_with_zeros_to_a_multiple_of_eight(nbits, rows, columns):
    padded_rows = -(-rows // 8) * 8
    padded = unpack(pack(random_codes(rows, columns, nbits), nbits), nbits, padded_rows)
    assert not padded[rows:].any()


@given(nbits=any_bits, rows=any_rows, columns=any_columns, seed=any_seed)
def test_unpacking_to_floats_gives_the_same_numbers(nbits, rows, columns, seed):
    codes = random_codes(rows, columns, nbits, seed)
    assert torch.equal(unpack(pack(codes, nbits), nbits, rows, torch.float32), codes.float())


@given(
    nbits=st.sampled_from(sorted(HQQ_PACK)),
    eighths=st.integers(1, 5),
    groups=st.integers(1, 4),
    group_size=st.sampled_from([8, 16, 64]),
)
def test_bytes_are_those_of_hqq_axis_1(nbits, eighths, groups, group_size):
    codes = random_codes(8 * eighths, groups * group_size, nbits)
    theirs = HQQ_PACK[nbits](codes.reshape(-1, group_size))  # [N * G, group_size], as hqq packs
    assert torch.equal(pack(codes, nbits).reshape(-1), theirs.reshape(-1))


@given(eighths=st.integers(1, 5), columns=any_columns)
def test_three_bits_are_hqqs_two_low_bits_and_then_its_high_bit(eighths, columns):
    codes = random_codes(8 * eighths, columns, 3)
    planes = [BitPack.pack_2bit_u8(codes & 3), BitPack.pack_1bit_u8(codes >> 2)]
    assert torch.equal(pack(codes, 3), torch.cat(planes))


@pytest.mark.parametrize("nbits", BITS)
def test_a_packed_tensor_has_nbits_eighths_of_the_rows(nbits):
    assert pack(random_codes(32, 5, nbits), nbits).shape == (4 * nbits, 5)


@given(rows=any_rows, columns=any_columns, seed=any_seed)
def test_words_are_those_of_hqq_and_unpacking_restores_the_codes(rows, columns, seed):
    codes = random_codes(rows, columns, 3, seed)
    packed = pack_words(codes)
    assert torch.equal(packed, BitPack.pack_3bit_32(codes.int()))
    assert tuple(packed.shape) == packed_words_shape(rows, columns)
    assert torch.equal(unpack_words(packed, rows), codes)
    assert torch.equal(unpack_words(packed, rows, torch.float32), codes.float())
