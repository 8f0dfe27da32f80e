"""Products of codes and activations, four neighbours a lane. Knows instruction sets.

Codes are 64 unsigned bytes. An activation is 256 * high + low, both signed bytes.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

from llvmlite import ir

from mixoff.kernels.cpu.codegen.ir import I8, I16, I32, Function, Value, fill, vector

WIDTH = 64  # codes that are multiplied at a time
LANES = WIDTH // 4

_ROWS_AT_A_TIME = 4  # registers hold their sums
_SUMS = vector(I32, LANES)


def largest_code(isa: str, nbits: int, vectors: int) -> int:
    """Return the largest byte that `dots` takes for so many vectors of codes of `nbits`.

    AVX2 adds products in signed 16 bits, two of each vector, by an instruction that saturates:
    beyond this byte, sums would be wrong. Other instruction sets add them in 32 bits.
    """
    if isa != "avx2" or nbits == 8:
        return 255
    return (2**15 - 1) // (2 * 128 * vectors)


def runs_of_lanes(length: int) -> list[int]:
    """Return the number of the run that each lane has after `by_lane`, for runs of some bytes."""
    vectors, each = length // 4, 16 // length  # runs of a quarter of a vector
    return [
        vector * WIDTH // length + quarter * each + run
        for quarter in range(4)
        for vector in range(vectors)
        for run in range(each)
    ]


def by_lane(function: Function, vectors: Sequence[Value]) -> list[Value]:
    """Return vectors <64 x i8> of which the n-th has each run's n-th dword in the run's lane.

    A run is 16 or 8 neighbours, four for each vector; `runs_of_lanes` has their order. So the
    products of a whole run are added up in one lane, which needs one scale, and nothing is added
    across lanes. Dwords stay in their quarter of a vector: shuffles across quarters are slower.
    """
    rows = [[function.build.bitcast(v, _SUMS)] for v in vectors]
    width = len(rows)  # dwords of a run that stand side by side
    while width > 1:
        rows = [
            [
                _halves(function, a, b, width, side)
                for a, b in zip(*pair, strict=True)
                for side in (0, width // 2)
            ]
            for pair in zip(rows[::2], rows[1::2], strict=True)
        ]
        width //= 2
    return [function.build.bitcast(v, vector(I8, WIDTH)) for v in rows[0]]


def _halves(function: Function, a: Value, b: Value, width: int, side: int) -> Value:
    """Return half of each run's dwords, from `side` on: of a quarter of a, then of b."""
    dwords = [run + side + n for run in range(0, 4, width) for n in range(width // 2)]
    lanes = [
        quarter + dword + source
        for quarter in range(0, LANES, 4)
        for source in (0, LANES)  # the lanes of a, and of b
        for dword in dwords
    ]
    return function.build.shuffle_vector(a, b, ir.Constant(_SUMS, lanes))


def dots(
    function: Function,
    isa: str,
    codes: Sequence[Iterable[Value]],
    high: Sequence[Value],
    low: Sequence[Value],
) -> list[Value]:
    """Return <16 x i32> for each row: each lane's sum of four codes times their activations.

    Parameters
    ----------
    isa
        "avx512-vnni", "avx-vnni", "avx2" (for codes up to `largest_code`), "avx2-bytes" (for any)
        or "generic".
    codes
        Some <64 x i8> of each row, bytes up to `largest_code`. Iterators write their code where it
        is used: values that are computed earlier would occupy registers until then.
    high, low
        As many <64 x i8> as a row has.
    """
    if isa == "avx512-vnni":
        return [
            total
            for first in range(0, len(codes), _ROWS_AT_A_TIME)
            for total in _vnni(function, codes[first : first + _ROWS_AT_A_TIME], high, low)
        ]
    if isa == "avx-vnni":
        return [_avx_vnni(function, row, high, low) for row in codes]
    if isa == "avx2":
        return [_avx2(function, [*row], high, low) for row in codes]
    if isa == "avx2-bytes":
        return [_avx2_bytes(function, [*row], high, low) for row in codes]
    return [_generic(function, [*row], high, low) for row in codes]


def _vnni(
    function: Function,
    codes: Sequence[Iterable[Value]],
    high: Sequence[Value],
    low: Sequence[Value],
) -> list[Value]:
    """Sum high and low bytes of some rows alternately.

    Instructions of one sum alone would each wait for the result of the one before.
    """
    multiply = function.intrinsic("llvm.x86.avx512.vpdpbusd.512", _SUMS, [_SUMS] * 3)
    build, zeros = function.build, fill(I32, LANES, 0)
    sums = [[zeros, zeros] for _ in codes]
    rows = [iter(row) for row in codes]
    for bytes_ in zip(high, low, strict=True):
        activations = [build.bitcast(value, _SUMS) for value in bytes_]
        for row, total in zip(rows, sums, strict=True):
            words = build.bitcast(next(row), _SUMS)
            for half in (0, 1):
                arguments = [total[half], words, activations[half]]
                total[half] = build.call(multiply, arguments)
    return [build.add(build.shl(above, fill(I32, LANES, 8)), below) for above, below in sums]


def _avx_vnni(
    function: Function, codes: Iterable[Value], high: Sequence[Value], low: Sequence[Value]
) -> Value:
    build, half = function.build, vector(I32, LANES // 2)
    multiply = function.intrinsic("llvm.x86.avx512.vpdpbusd.256", half, [half] * 3)
    halves = (range(LANES // 2), range(LANES // 2, LANES))
    sums = [[fill(I32, LANES // 2, 0)] * 2 for _ in halves]
    for vectors in zip(codes, high, low, strict=True):
        words, *activations = (build.bitcast(value, _SUMS) for value in vectors)
        for lanes, total in zip(halves, sums, strict=True):
            half_words = function.pick(words, lanes)
            for byte, values in enumerate(activations):
                arguments = [total[byte], half_words, function.pick(values, lanes)]
                total[byte] = build.call(multiply, arguments)
    eight = fill(I32, LANES // 2, 8)
    return function.join(*(build.add(build.shl(above, eight), below) for above, below in sums))


def _avx2(
    function: Function, codes: Sequence[Value], high: Sequence[Value], low: Sequence[Value]
) -> Value:
    build = function.build
    bytes_, words, sums = vector(I8, 32), vector(I16, 16), vector(I32, 8)
    pairs = function.intrinsic("llvm.x86.avx2.pmadd.ub.sw", words, [bytes_] * 2)
    fours = function.intrinsic("llvm.x86.avx2.pmadd.wd", sums, [words] * 2)
    halves = []
    for lanes in (range(32), range(32, 64)):
        total = None
        for activations, factor in ((high, 256), (low, 1)):
            products = [
                build.call(pairs, [function.pick(row, lanes), function.pick(values, lanes)])
                for row, values in zip(codes, activations, strict=True)
            ]
            # The sum of neighbours in 32 bits, and 256 times that of high bytes.
            term = build.call(fours, [reduce(build.add, products), fill(I16, 16, factor)])
            total = term if total is None else build.add(total, term)
        halves.append(total)
    return function.join(*halves)


def _avx2_bytes(
    function: Function, codes: Sequence[Value], high: Sequence[Value], low: Sequence[Value]
) -> Value:
    above, below = (_avx2(function, half, high, low) for half in _nibbles(function, codes))
    return function.build.add(function.build.shl(above, fill(I32, LANES, 4)), below)


def _nibbles(function: Function, codes: Sequence[Value]) -> tuple[list[Value], list[Value]]:
    """Return the upper and the lower four bits of codes."""
    build, mask = function.build, fill(I32, LANES, 0x0F0F0F0F)
    words = [build.bitcast(row, _SUMS) for row in codes]
    upper = [build.and_(build.lshr(word, fill(I32, LANES, 4)), mask) for word in words]
    lower = [build.and_(word, mask) for word in words]
    kind = vector(I8, WIDTH)
    return [build.bitcast(v, kind) for v in upper], [build.bitcast(v, kind) for v in lower]


def _generic(
    function: Function, codes: Sequence[Value], high: Sequence[Value], low: Sequence[Value]
) -> Value:
    build = function.build
    above, below = (_products(function, codes, values) for values in (high, low))
    return build.add(build.shl(above, fill(I32, LANES, 8)), below)


def _products(function: Function, codes: Sequence[Value], values: Sequence[Value]) -> Value:
    build, words, total = function.build, vector(I16, WIDTH), fill(I32, LANES, 0)
    for row, activations in zip(codes, values, strict=True):
        # 255 * -128 is still within 16 bits.
        products = build.mul(build.zext(row, words), build.sext(activations, words))
        for neighbour in range(4):
            lanes = [4 * lane + neighbour for lane in range(LANES)]
            total = build.add(total, build.sext(function.pick(products, lanes), _SUMS))
    return total
