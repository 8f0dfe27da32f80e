"""The router of one token: logits, the experts with the largest ones, and their shares."""

import math
from functools import partial

from llvmlite import ir

from mixoff.kernels.cpu.codegen.floats import (
    PIECE,
    from_bfloat16,
    load_floats,
    power_of_two,
    sum_products,
    to_bfloat16,
)
from mixoff.kernels.cpu.codegen.ir import F32, I8, I32, I64, Function, Value

BUFFERS = ("x", "weight", "logits", "taken", "shares", "chosen")
NUMBERS = ("first", "last", "columns", "experts", "top_k")


def add_route(module: ir.Module, *, bfloat16: bool) -> Function:
    """Write the function ``route`` of one token: the range from ``first`` 0 to ``last`` 1.

    Buffers: x [D] and weight [E, D], float32 or `bfloat16`; to write into, float32 logits [E],
    rounded to x's type, bytes taken [E], float32 shares [k], the softmax of the largest logits, and
    int64 chosen [k], the experts of these, the largest first. Of equal logits the first is chosen.
    NaN, to which no logit compares as larger or smaller, is chosen only if it is the first that is
    left. Numbers: D, a multiple of 64; E; k.
    """
    function = Function(module, "route", BUFFERS, NUMBERS)
    _Route(function, bfloat16).write()
    return function.end()


class _Route:
    def __init__(self, function: Function, bfloat16: bool) -> None:
        self._f, self._bfloat16 = function, bfloat16

    def write(self) -> None:
        f = self._f

        def token(_: Value) -> None:
            f.loop(0, f["experts"], 1, self._write_logit)
            f.loop(0, f["top_k"], 1, self._choose)
            self._write_shares()

        f.loop(f["first"], f["last"], 1, token)

    def _write_logit(self, expert: Value) -> None:
        f = self._f
        row = f.mul(expert, f["columns"])

        def pair(k: Value) -> tuple[Value, Value]:
            load = partial(load_floats, f, bfloat16=self._bfloat16)
            return load(f["x"], k), load(f["weight"], f.add(row, k))

        total = sum_products(f, f["columns"], pair)
        if self._bfloat16:
            rounded = from_bfloat16(f, to_bfloat16(f, f.splat(total, PIECE)))
            total = f.build.extract_element(rounded, ir.Constant(I32, 0))
        f.store(total, f["logits"], f.mul(expert, 4), align=4)
        f.store(ir.Constant(I8, 0), f["taken"], expert)

    def _choose(self, rank: Value) -> None:
        """Write the largest logit that isn't taken yet, and the number of its expert."""
        f, build = self._f, self._f.build
        best, largest = f.variable(I64, f.number(-1)), f.variable(F32, ir.Constant(F32, 0.0))

        def compare(expert: Value) -> None:
            logit = f.load(f["logits"], f.mul(expert, 4), F32, align=4)
            is_free = build.icmp_signed("==", f.load(f["taken"], expert, I8), ir.Constant(I8, 0))
            is_first = build.icmp_signed("<", build.load(best), f.number(0))
            is_larger = build.fcmp_ordered(">", logit, build.load(largest))
            is_better = build.and_(is_free, build.or_(is_first, is_larger))
            build.store(build.select(is_better, expert, build.load(best)), best)
            build.store(build.select(is_better, logit, build.load(largest)), largest)

        f.loop(0, f["experts"], 1, compare)
        f.store(ir.Constant(I8, 1), f["taken"], build.load(best))
        f.store(build.load(best), f["chosen"], f.mul(rank, 8), align=8)
        f.store(build.load(largest), f["shares"], f.mul(rank, 4), align=4)

    def _write_shares(self) -> None:
        """Rerank the largest logits by shares, which add up to 1."""
        f, build = self._f, self._f.build
        top = f.load(f["shares"], f.number(0), F32, align=4)
        total = f.variable(F32, ir.Constant(F32, 0.0))

        def weigh(rank: Value) -> None:
            at = f.mul(rank, 4)
            difference = build.fsub(f.load(f["shares"], at, F32, align=4), top)
            exponent = build.fmul(difference, ir.Constant(F32, 1 / math.log(2)))
            powers = power_of_two(f, f.splat(exponent, PIECE))
            share = build.extract_element(powers, ir.Constant(I32, 0))
            build.store(build.fadd(build.load(total), share), total)
            f.store(share, f["shares"], at, align=4)

        def divide(rank: Value) -> None:
            at = f.mul(rank, 4)
            share = build.fdiv(f.load(f["shares"], at, F32, align=4), build.load(total))
            f.store(share, f["shares"], at, align=4)

        f.loop(0, f["top_k"], 1, weigh)
        f.loop(0, f["top_k"], 1, divide)
