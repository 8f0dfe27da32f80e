"""Vectors of 16 floats: functions that LLVM has no instruction for, and types in memory."""

import math
from collections.abc import Callable

from mixoff.kernels.cpu.codegen.ir import F32, I16, I32, Function, Value, fill, vector

PIECE = 16  # floats of a vector
FLOATS = vector(F32, PIECE)
AT_ONCE = 4 * PIECE  # floats that are added to four sums, which don't wait for one another

_INTEGERS, _HALVES = vector(I32, PIECE), vector(I16, PIECE)
_EXPONENTS = 126.0  # of normal numbers, from -126 on
_TERMS = [math.log(2) ** n / math.factorial(n) for n in range(8)]  # 2**x to 1e-8 for |x| <= 0.5


def power_of_two(function: Function, x: Value) -> Value:
    """Return 2**x, with x limited to -126 to 126; NaN is preserved.

    NaN passes the limits, since comparisons with it are false, and its bits keep those of NaN: its
    whole part is 0, by conversion with saturation, and so adds nothing to the exponent.
    """
    build = function.build
    for sign, relation in ((-1, "<"), (1, ">")):
        limit = fill(F32, PIECE, sign * _EXPONENTS)
        x = build.select(build.fcmp_ordered(relation, x, limit), limit, x)
    whole = build.call(function.intrinsic("llvm.rint.v16f32", FLOATS, [FLOATS]), [x])
    rest, value = build.fsub(x, whole), fill(F32, PIECE, _TERMS[-1])
    for term in reversed(_TERMS[:-1]):
        value = function.fma(value, rest, fill(F32, PIECE, term))
    to_integers = function.intrinsic("llvm.fptosi.sat.v16i32.v16f32", _INTEGERS, [FLOATS])
    exponent = build.shl(build.call(to_integers, [whole]), fill(I32, PIECE, 23))
    return build.bitcast(build.add(build.bitcast(value, _INTEGERS), exponent), FLOATS)


def silu(function: Function, x: Value) -> Value:
    """Return x / (1 + exp(-x)), or x / 2**126 if that is smaller still."""
    build, one = function.build, fill(F32, PIECE, 1.0)
    power = power_of_two(function, build.fmul(x, fill(F32, PIECE, -1 / math.log(2))))
    return build.fdiv(x, build.fadd(one, power))


def load_floats(function: Function, base: Value, index: Value, *, bfloat16: bool) -> Value:
    """Return the floats from an index on, which are stored as float32 or as `bfloat16`."""
    if not bfloat16:
        return function.load(base, function.mul(index, 4), FLOATS, align=4)
    return from_bfloat16(function, function.load(base, function.mul(index, 2), _HALVES, align=2))


def store_floats(
    function: Function, value: Value, base: Value, index: Value, *, bfloat16: bool
) -> None:
    """Write floats from an index on, as float32 or rounded to `bfloat16`."""
    stored, itemsize = (to_bfloat16(function, value), 2) if bfloat16 else (value, 4)
    function.store(stored, base, function.mul(index, itemsize), align=itemsize)


def sum_products(
    function: Function, columns: Value, pair: Callable[[Value], tuple[Value, Value]]
) -> Value:
    """Return the sum of products over columns, a multiple of `AT_ONCE`, in any order.

    `pair` returns both factors of the 16 columns from a column on.
    """
    build = function.build
    zeros = fill(F32, PIECE, 0.0)
    sums = [function.variable(FLOATS, zeros) for _ in range(AT_ONCE // PIECE)]

    def add(k: Value) -> None:
        for number, total in enumerate(sums):
            left, right = pair(function.add(k, number * PIECE))
            build.store(function.fma(left, right, build.load(total)), total)

    function.loop(0, columns, AT_ONCE, add)
    total, *rest = (build.load(pointer) for pointer in sums)
    for value in rest:
        total = build.fadd(total, value)
    return function.sum_lanes(total)


def from_bfloat16(function: Function, stored: Value) -> Value:
    """Return the floats whose bfloat16 are <16 x i16>."""
    whole = function.build.zext(stored, _INTEGERS)
    return function.build.bitcast(function.build.shl(whole, fill(I32, PIECE, 16)), FLOATS)


def to_bfloat16(function: Function, x: Value, *, native: bool = False) -> Value:
    """Return bfloat16, <16 x i16>, rounded to nearest, ties to even.

    Infinity is preserved, and so is the NaN that arithmetic makes; NaN with other low bits may
    become infinity or zero. The CPU's own instruction (`native`) makes 0 of subnormal numbers.
    """
    build = function.build
    if native:
        name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
        return build.call(function.intrinsic(name, _HALVES, [FLOATS]), [x])
    bits = build.bitcast(x, _INTEGERS)
    odd = build.and_(build.lshr(bits, fill(I32, PIECE, 16)), fill(I32, PIECE, 1))
    bits = build.add(build.add(bits, odd), fill(I32, PIECE, 0x7FFF))
    return build.trunc(build.lshr(bits, fill(I32, PIECE, 16)), _HALVES)
