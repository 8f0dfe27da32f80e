"""Codes, scales and activations as Triton's kernels read them from packed rows, in float32.

Eight columns of a packed row are read as one int64 and four as one int32: rows of packed weights
always have a multiple of eight bytes, so that a thread reads whole words, and neighbours read
neighbouring words. Numbers of 16 bits are taken out of words by shifts, bfloat16 included, since
GPUs of compute capability 7 have no instructions for it.

Tiles have the shape [tokens, blocks, packed rows, words], and threads lie along the words: a thread
has all blocks of its bytes, and the shifts of codes are constants. Rows are loaded one by one,
since Triton up to 3.6 spreads threads over the rows of a tile whose neighbours share a scale.
"""

import triton
import triton.language as tl

from mixoff.quantization.hqq import GROUPS_PER_PAIR

_PER_PAIR = tl.constexpr(GROUPS_PER_PAIR)


@triton.jit
def code_places(block, NBITS: tl.constexpr):
    """Return the lowest bit of a block's code in its byte; for 3 bits, of the low two."""
    return 6 - 2 * (block // 2) if NBITS == 3 else 8 - NBITS * (block + 1)


@triton.jit
def power_of_two(exponent):
    """Return 2**exponent in float32, of an int32 tile."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def codes_in_place(even, odd, high, block, place, COLUMN: tl.constexpr, NBITS: tl.constexpr):
    """Return code * 2**(place + 8 * (COLUMN % 2)) in float32, for one column of each word.

    The bits aren't shifted, and become the lowest bits of a float from 2**23 on: that is exact and
    takes no conversion.

    Parameters
    ----------
    even, odd, high
        Words of packed rows: for 3 bits, of the low bits of even and of odd blocks, and of the high
        bits; else `even` alone is read.
    block, place
        Numbers of the blocks, and their `code_places`.
    COLUMN
        The byte of the word, 0 the lowest.
    """
    shift = place + 8 * (COLUMN % 2)
    start: tl.constexpr = 16 * (COLUMN // 2)
    low = (even >> start).to(tl.int32)
    if NBITS == 3:
        low = tl.where(block % 2 == 0, low, (odd >> start).to(tl.int32))
        top = (high >> start).to(tl.int32)
        top = tl.where(block % 2 == 0, top << 1, top << 2)  # above the low bits
        ones = tl.full([1], 1, tl.int32)
        bits = (low & ((3 * ones) << shift)) | (top & ((4 * ones) << shift))
    else:
        ones = tl.full([1], 2**NBITS - 1, tl.int32)
        bits = low & (ones << shift)
    return (bits | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def load_rows(base, first, end, length, at, COUNT: tl.constexpr, AXIS: tl.constexpr):
    """Return the words `at` some positions of COUNT rows from `first` on, which lie along an axis.

    Words past a row's `length` are 0. For rows from `end` on, the last one is read: that saves
    masks, and their results aren't stored.
    """
    numbers = tl.arange(0, COUNT)
    number = numbers[:, None, None, None] if AXIS == 0 else numbers[None, None, :, None]
    rows = tl.zeros([1, 1, 1, 1], base.dtype.element_ty)
    for n in tl.static_range(COUNT):
        row = tl.minimum(first + n, end - 1)
        start = base + row.to(tl.int64) * length
        loaded = tl.load(start + at, mask=at < length, other=0)  # [1, 1, 1, words]
        rows = tl.where(number == n, loaded, rows)
    return rows


@triton.jit
def load_codes(codes, first, packed_rows, words, word, NBITS: tl.constexpr, HEIGHT: tl.constexpr):
    """Return the words `even`, `odd` and `high` of HEIGHT packed rows."""
    even = load_rows(codes, first, packed_rows, words, word, HEIGHT, 2)
    odd = even
    high = even
    if NBITS == 3:
        plane = packed_rows.to(tl.int64) * words
        odd = load_rows(codes + plane, first, packed_rows, words, word, HEIGHT, 2)
        high = load_rows(codes + 2 * plane, first, packed_rows, words, word, HEIGHT, 2)
    return even, odd, high


@triton.jit
def load_scales(
    scale,
    zero,
    pairs,
    first,
    packed_rows,
    rows,
    group,
    groups,
    BYTES: tl.constexpr,
    BLOCKS: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Return scales and zeros of the rows of HEIGHT packed rows, in float32."""
    block = tl.arange(0, BLOCKS)[None, :, None, None]
    height = tl.arange(0, HEIGHT)[None, None, :, None]
    s = tl.zeros([1, 1, 1, 1], tl.float32)
    z = s
    for b in tl.static_range(BLOCKS):
        for h in tl.static_range(HEIGHT):
            row = tl.minimum(b * packed_rows + first + h, rows - 1)
            row_s, row_z = load_scale(scale, zero, pairs, row, group, groups, BYTES)
            is_row = (block == b) & (height == h)
            s = tl.where(is_row, row_s, s)
            z = tl.where(is_row, row_z, z)
    return s, z


@triton.jit
def load_scale(scale, zero, pairs, row, group, groups, BYTES: tl.constexpr):
    """Return some scales and zeros of a row, in float32. A pair is one int64."""
    inside = group < groups
    row = row.to(tl.int64)
    start = row * groups
    s = tl.load(scale + start + group, mask=inside, other=0).to(tl.float32)
    z = tl.load(zero + start + group, mask=inside, other=0).to(tl.float32)
    if BYTES:
        start = pairs + row * ((groups + _PER_PAIR - 1) // _PER_PAIR) * 2
        pair = (group // _PER_PAIR) * 2
        word = tl.load(start + pair, mask=inside, other=0)
        s = s * float_in_word(word, 0, "float32") + float_in_word(word, 1, "float32")
        word = tl.load(start + pair + 1, mask=inside, other=0)
        z = z * float_in_word(word, 0, "float32") + float_in_word(word, 1, "float32")
    return s, z


@triton.jit
def float_in_word(word, NUMBER: tl.constexpr, KIND: tl.constexpr):
    """Return a number of an int64 as float32: one of two float32, or one of four of 16 bits."""
    if KIND == "float32":
        value = (word >> (32 * NUMBER)).to(tl.int32).to(tl.float32, bitcast=True)
    elif KIND == "bfloat16":
        value = ((word >> (16 * NUMBER)).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        value = (word >> (16 * NUMBER)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return value


@triton.jit
def stored_bits(value, KIND: tl.constexpr):
    """Return the bits, as int32, in which a float32 is stored: bfloat16 is rounded to even.

    NaN is preserved: as bfloat16 it is one certain NaN, since rounding could make infinity of it.
    """
    if KIND == "float32":
        bits = value.to(tl.int32, bitcast=True)
    elif KIND == "bfloat16":
        bits = value.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        bits = tl.where(value == value, rounded, 0x7FC0) & 0xFFFF
    else:
        bits = value.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return bits
