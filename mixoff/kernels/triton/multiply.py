"""y = x W^T straight from packed weights: Triton's kernel for few tokens, without tensor cores.

Of W = (W_q - zero) * scale, a chunk of columns that share a scale adds
scale * (sum of W_q x - zero * sum of x) to y. A program has some packed rows and all their columns,
a chunk a thread, and adds the sums of its threads at the end. Their order depends on the shape
alone, so that results are the same in every run.
"""

import triton
import triton.language as tl

from mixoff.kernels.triton.codes import (
    code_places,
    codes_in_place,
    float_in_word,
    load_codes,
    load_rows,
    load_scales,
    power_of_two,
    stored_bits,
)


@triton.jit(do_not_specialize=["packed_rows", "rows", "words", "groups", "tokens"])
def multiply_kernel(
    codes,
    scale,
    zero,
    pairs,
    x,
    out,
    packed_rows,
    rows,
    words,
    groups,
    tokens,
    NBITS: tl.constexpr,
    BLOCKS: tl.constexpr,
    GROUP: tl.constexpr,
    BYTES: tl.constexpr,
    KIND: tl.constexpr,
    WORDS: tl.constexpr,
    TOKENS: tl.constexpr,
    HEIGHT: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Write out[t, n] for TOKENS tokens and the rows of HEIGHT packed rows.

    Parameters
    ----------
    codes, scale, zero, pairs
        A `Packed` matrix, codes and pairs as int64.
    x
        [T, K] as int64.
    out
        [T, N]; bfloat16 as int16.
    packed_rows, rows, words, groups, tokens
        R, N, K / 8, G, T. They aren't specialized on: a form is compiled once for all shapes, and
        every load has the one layout in which threads lie along the words.
    KIND
        The type of x and out.
    WORDS
        int64 words of codes in a chunk, whose columns share a scale.
    CHUNKS
        Chunks that a program has at a time: one a thread.
    """
    parts = tl.cdiv(tokens, TOKENS)
    first_token = (tl.program_id(0) % parts) * TOKENS
    first_row = (tl.program_id(0) // parts) * HEIGHT
    block = tl.arange(0, BLOCKS)[None, :, None, None]
    lane = tl.arange(0, CHUNKS)[None, None, None, :]
    place = code_places(block, NBITS)
    fraction = power_of_two(-place)
    chunks = words // WORDS
    numbers: tl.constexpr = 2 if KIND == "float32" else 4  # of activations in an int64
    y = tl.zeros([TOKENS, BLOCKS, HEIGHT, CHUNKS], tl.float32)
    for first in range(0, chunks, CHUNKS):
        c = first + lane
        group = c * (8 * WORDS) // GROUP
        s, z = load_scales(
            scale,
            zero,
            pairs,
            first_row,
            packed_rows,
            rows,
            group,
            groups,
            BYTES,
            BLOCKS,
            HEIGHT,
        )
        dot = tl.zeros([TOKENS, BLOCKS, HEIGHT, CHUNKS], tl.float32)
        total = tl.zeros([TOKENS, 1, 1, CHUNKS], tl.float32)
        for number in tl.static_range(WORDS):
            word = c * WORDS + number
            even, odd, high = load_codes(codes, first_row, packed_rows, words, word, NBITS, HEIGHT)
            for column in tl.static_range(8):
                if column % numbers == 0:
                    at = word * (8 // numbers) + column // numbers
                    length = words * (8 // numbers)
                    inputs = load_rows(x, first_token, tokens, length, at, TOKENS, 0)
                value = float_in_word(inputs, column % numbers, KIND)
                total += value
                if column % 2 == 1:
                    value *= 0.00390625  # 2**-8: the code is that much too large
                dot += codes_in_place(even, odd, high, block, place, column, NBITS) * value
        y += (s * fraction) * dot - (s * z) * total
    y = tl.sum(y, axis=3)  # [TOKENS, BLOCKS, HEIGHT]
    t = (first_token + tl.arange(0, TOKENS))[:, None, None]
    r = (first_row + tl.arange(0, HEIGHT))[None, None, :]
    n = tl.arange(0, BLOCKS)[None, :, None] * packed_rows + r
    exists = (t < tokens) & (r < packed_rows) & (n < rows)
    at = out + t.to(tl.int64) * rows + n
    if KIND == "bfloat16":
        tl.store(at, stored_bits(y, KIND).to(tl.int16), mask=exists)
    else:
        tl.store(at, y, mask=exists)
