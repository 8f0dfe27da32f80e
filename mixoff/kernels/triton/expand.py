"""W = (W_q - zero) * scale in float32, float16 or bfloat16: Triton's kernel for many tokens."""

import triton
import triton.language as tl

from mixoff.kernels.triton.codes import (
    code_places,
    codes_in_place,
    load_codes,
    load_scales,
    power_of_two,
    stored_bits,
)


@triton.jit(do_not_specialize=["first", "count", "packed_rows", "rows", "words", "groups"])
def expand_kernel(
    codes,
    scale,
    zero,
    pairs,
    out,
    first,
    count,
    packed_rows,
    rows,
    words,
    groups,
    NBITS: tl.constexpr,
    BLOCKS: tl.constexpr,
    GROUP: tl.constexpr,
    BYTES: tl.constexpr,
    KIND: tl.constexpr,
    HEIGHT: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Write out[block, r - first, k], [BLOCKS, count, K], of `count` packed rows from `first` on.

    It must be launched without fused multiply-add: weights then equal torch's to the bit.

    Parameters
    ----------
    codes, scale, zero, pairs
        A `Packed` matrix, codes as int32, pairs as int64.
    out
        As int64: two numbers of 32 bits, or four of 16.
    first, count, packed_rows, rows, words, groups
        The range of packed rows, R, N, K / 4, G.
    KIND
        The type of out.
    HEIGHT, WORDS
        Packed rows of a program, and words of each: a word a thread.
    """
    wide = tl.cdiv(words, WORDS)
    block = tl.arange(0, BLOCKS)[None, :, None, None]
    place = code_places(block, NBITS)
    first_row = (tl.program_id(0) // wide) * HEIGHT
    row = first_row + tl.arange(0, HEIGHT)[None, None, :, None]
    word = (tl.program_id(0) % wide) * WORDS + tl.arange(0, WORDS)[None, None, None, :]
    r = first + first_row
    even, odd, high = load_codes(codes, r, packed_rows, words, word, NBITS, HEIGHT)
    group = word * 4 // GROUP
    s, z = load_scales(
        scale, zero, pairs, r, packed_rows, rows, group, groups, BYTES, BLOCKS, HEIGHT
    )
    numbers: tl.constexpr = 2 if KIND == "float32" else 4  # in an int64 of out
    at = out + ((block.to(tl.int64) * count + row) * words + word) * (4 // numbers)
    inside = (word < words) & (row < count)
    packed = tl.zeros([1, BLOCKS, HEIGHT, WORDS], tl.int64)
    for column in tl.static_range(4):
        code = codes_in_place(even, odd, high, block, place, column, NBITS)
        code *= power_of_two(-place - 8 * (column % 2))
        bits = stored_bits((code - z) * s, KIND).to(tl.uint32, bitcast=True).to(tl.int64)
        packed |= bits << ((64 // numbers) * (column % numbers))
        if column % numbers == numbers - 1:
            tl.store(at + column // numbers, packed, mask=inside)
            packed = tl.zeros([1, BLOCKS, HEIGHT, WORDS], tl.int64)
