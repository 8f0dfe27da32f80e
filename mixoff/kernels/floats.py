"""Arithmetic on vectors of 16 floats that LLVM has no instruction for. Knows numbers alone."""

import math

from mixoff.kernels.ir import F32, I16, I32, Function, Value, fill, vector

PIECE = 16  # floats of a vector
FLOATS = vector(F32, PIECE)

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
