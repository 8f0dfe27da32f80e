"""Products of codes and activations, four neighbours a lane. Knows instruction sets.

Codes are 64 unsigned bytes. An activation is 256 * high + low, both signed bytes.
"""

from collections.abc import Sequence
from functools import reduce

from mixoff.kernels.ir import I8, I16, I32, Function, Value, fill, vector

WIDTH = 64  # codes that are multiplied at a time
LANES = WIDTH // 4

_ROWS_AT_A_TIME = 4  # as many as registers hold the sums of
_SUMS = vector(I32, LANES)


def largest_code(isa: str, nbits: int, vectors: int) -> int:
    """Return the largest byte that `dots` takes for so many vectors, where codes have `nbits`.

    AVX2 makes sums of products in 16 bits, two of each vector.
    """
    if isa != "avx2" or nbits == 8:
        return 255
    return (2**15 - 1) // (2 * 128 * vectors)


def dots(
    function: Function,
    isa: str,
    codes: Sequence[Sequence[Value]],
    high: Sequence[Value],
    low: Sequence[Value],
) -> list[Value]:
    """Return <16 x i32> for each row: each lane's sum of four codes times their activations.

    Parameters
    ----------
    isa
        "avx512-vnni", "avx2" (whose codes are below 2**7), "avx2-bytes" (for any) or "generic".
    codes
        Some <64 x i8> of each row, bytes up to `largest_code`.
    high, low
        As many <64 x i8> as a row has.
    """
    if isa == "avx512-vnni":
        return [
            total
            for first in range(0, len(codes), _ROWS_AT_A_TIME)
            for total in _vnni(function, codes[first : first + _ROWS_AT_A_TIME], high, low)
        ]
    if isa == "avx2":
        return [_avx2(function, own, high, low) for own in codes]
    if isa == "avx2-bytes":
        return [_avx2_bytes(function, own, high, low) for own in codes]
    return [_generic(function, own, high, low) for own in codes]


def _vnni(
    function: Function,
    codes: Sequence[Sequence[Value]],
    high: Sequence[Value],
    low: Sequence[Value],
) -> list[Value]:
    """Sum high and low bytes of some rows in turns: a sum alone would wait for itself."""
    multiply = function.intrinsic("llvm.x86.avx512.vpdpbusd.512", _SUMS, [_SUMS] * 3)
    build, nothing = function.build, fill(I32, LANES, 0)
    sums = [[nothing, nothing] for _ in codes]
    for number, bytes_ in enumerate(zip(high, low, strict=True)):
        activations = [build.bitcast(value, _SUMS) for value in bytes_]
        for own, total in zip(codes, sums, strict=True):
            words = build.bitcast(own[number], _SUMS)
            for half in (0, 1):
                arguments = [total[half], words, activations[half]]
                total[half] = build.call(multiply, arguments)
    return [build.add(build.shl(above, fill(I32, LANES, 8)), below) for above, below in sums]


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
                build.call(pairs, [function.pick(own, lanes), function.pick(values, lanes)])
                for own, values in zip(codes, activations, strict=True)
            ]
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
    words = [build.bitcast(own, _SUMS) for own in codes]
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
    for own, activations in zip(codes, values, strict=True):
        products = build.mul(build.zext(own, words), build.sext(activations, words))  # they fit
        for neighbour in range(4):
            lanes = [4 * lane + neighbour for lane in range(LANES)]
            total = build.add(total, build.sext(function.pick(products, lanes), _SUMS))
    return total
