"""Vectors of 16 floats: arithmetic that LLVM has no instruction for, and types in memory."""

import math
from collections.abc import Callable

from mixoff.kernels.cpu.codegen.ir import F32, I16, I32, Function, Value, fill, vector

PIECE = 16  # floats of a vector
FLOATS = vector(F32, PIECE)
AT_ONCE = 4 * PIECE  # floats whose sums wait for nobody else's

_INTEGERS, _HALVES = vector(I32, PIECE), vector(I16, PIECE)
_EXPONENTS = 126.0  # of normal numbers, from -126 on
_TERMS = [math.log(2) ** n / math.factorial(n) for n in range(8)]  # of 2**x, right to 1e-8 at 0.5


def power_of_two(function: Function, x: Value) -> Value:
    """Return 2**x, of numbers beyond +-126 that of these; what is no number stays none."""
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


def load_floats(function: Function, base: Value, index: Value, *, halves: bool) -> Value:
    """Return the floats that lie from an index on, as float32 or bfloat16 (`halves`)."""
    if not halves:
        return function.load(base, function.mul(index, 4), FLOATS, align=4)
    return from_bfloat16(function, function.load(base, function.mul(index, 2), _HALVES, align=2))


def store_floats(
    function: Function, value: Value, base: Value, index: Value, *, halves: bool
) -> None:
    """Write floats from an index on, as float32 or rounded to bfloat16 (`halves`)."""
    stored, itemsize = (to_bfloat16(function, value), 2) if halves else (value, 4)
    function.store(stored, base, function.mul(index, itemsize), align=itemsize)


def sum_products(
    function: Function, columns: Value, pair: Callable[[Value], tuple[Value, Value]]
) -> Value:
    """Return the sum of products of floats of columns, a multiple of `AT_ONCE`, in any order.

    `pair` is given a column, and returns the floats of 16 from there on of both factors.
    """
    build = function.build
    nothing = fill(F32, PIECE, 0.0)
    sums = [function.variable(FLOATS, nothing) for _ in range(AT_ONCE // PIECE)]

    def add(k: Value) -> None:
        for number, place in enumerate(sums):
            one, other = pair(function.add(k, number * PIECE))
            build.store(function.fma(one, other, build.load(place)), place)

    function.loop(0, columns, AT_ONCE, add)
    first, *others = (build.load(place) for place in sums)
    for other in others:
        first = build.fadd(first, other)
    return function.sum_lanes(first)


def from_bfloat16(function: Function, halves: Value) -> Value:
    """Return the floats that <16 x i16> are as bfloat16."""
    whole = function.build.zext(halves, _INTEGERS)
    return function.build.bitcast(function.build.shl(whole, fill(I32, PIECE, 16)), FLOATS)


def to_bfloat16(function: Function, x: Value, *, native: bool = False) -> Value:
    """Return bfloat16, <16 x i16>, rounded to nearest, ties to even; infinity stays what it is.

    So does what arithmetic makes when there is no number. The CPU's own instruction (`native`)
    makes 0 of subnormal ones.
    """
    build = function.build
    if native:
        name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
        return build.call(function.intrinsic(name, _HALVES, [FLOATS]), [x])
    bits = build.bitcast(x, _INTEGERS)
    odd = build.and_(build.lshr(bits, fill(I32, PIECE, 16)), fill(I32, PIECE, 1))
    bits = build.add(build.add(bits, odd), fill(I32, PIECE, 0x7FFF))
    return build.trunc(build.lshr(bits, fill(I32, PIECE, 16)), _HALVES)
