"""Products of codes and activations, four neighbours a lane. Knows instruction sets.

Codes are 64 unsigned bytes. An activation is 256 * high + low, both signed bytes.
"""

from collections.abc import Sequence
from functools import reduce

from mixoff.kernels.ir import I8, I16, I32, Function, Value, fill, vector

WIDTH = 64  # codes that are multiplied at a time
LANES = WIDTH // 4

_SUMS = vector(I32, LANES)


def largest_code(isa: str, nbits: int, vectors: int) -> int:
    """Return the largest byte that `dot` takes for so many vectors, where codes have `nbits`.

    AVX2 makes sums of products in 16 bits, two of each vector.
    """
    if isa != "avx2" or nbits == 8:
        return 255
    return (2**15 - 1) // (2 * 128 * vectors)


def dot(
    function: Function,
    isa: str,
    codes: Sequence[Value],
    high: Sequence[Value],
    low: Sequence[Value],
) -> Value:
    """Return <16 x i32>: each lane's sum of four codes times their activations, of some vectors.

    Parameters
    ----------
    isa
        "avx512-vnni", "avx2" (whose codes are below 2**7), "avx2-bytes" (for any) or "generic".
    codes, high, low
        As many <64 x i8> each; codes are bytes up to `largest_code`.
    """
    build = function.build
    if isa == "avx2-bytes":
        above, below = (_avx2(function, half, high, low) for half in _nibbles(function, codes))
        return build.add(build.shl(above, fill(I32, LANES, 4)), below)
    if isa == "avx2":
        return _avx2(function, codes, high, low)
    one = _vnni if isa == "avx512-vnni" else _generic
    total = fill(I32, LANES, 0)
    for own, activations in zip(codes, high, strict=True):
        total = one(function, total, own, activations)
    total = build.shl(total, fill(I32, LANES, 8))
    for own, activations in zip(codes, low, strict=True):
        total = one(function, total, own, activations)
    return total


def _vnni(function: Function, total: Value, codes: Value, activations: Value) -> Value:
    multiply = function.intrinsic("llvm.x86.avx512.vpdpbusd.512", _SUMS, [_SUMS] * 3)
    words = [function.build.bitcast(value, _SUMS) for value in (codes, activations)]
    return function.build.call(multiply, [total, *words])


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


def _nibbles(function: Function, codes: Sequence[Value]) -> tuple[list[Value], list[Value]]:
    """Return the upper and the lower four bits of codes."""
    build, mask = function.build, fill(I32, LANES, 0x0F0F0F0F)
    words = [build.bitcast(own, _SUMS) for own in codes]
    upper = [build.and_(build.lshr(word, fill(I32, LANES, 4)), mask) for word in words]
    lower = [build.and_(word, mask) for word in words]
    kind = vector(I8, WIDTH)
    return [build.bitcast(v, kind) for v in upper], [build.bitcast(v, kind) for v in lower]


def _generic(function: Function, total: Value, codes: Value, activations: Value) -> Value:
    build, words = function.build, vector(I16, WIDTH)
    products = build.mul(build.zext(codes, words), build.sext(activations, words))  # 255 * 128 fits
    for neighbour in range(4):
        lanes = [4 * lane + neighbour for lane in range(LANES)]
        total = build.add(total, build.sext(function.pick(products, lanes), _SUMS))
    return total
