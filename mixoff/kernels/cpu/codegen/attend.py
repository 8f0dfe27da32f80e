"""One token's attention: softmax(q K^T) V for heads that share keys and values. Knows no weights.

Keys and values are read in place, once for `_AT_ONCE` heads. Everything else is float32.
"""

import math
from collections.abc import Sequence

from llvmlite import ir

from mixoff.kernels.cpu.codegen.floats import FLOATS, PIECE, load_floats, power_of_two
from mixoff.kernels.cpu.codegen.ir import F32, Function, Value, fill

BUFFERS = ("query", "key", "value", "scores", "out")
NUMBERS = ("first", "last", "tokens", "padded", "key_head", "key_row", "value_head", "value_row")

_AHEAD = 16  # tokens from the key that is read to the key that is prefetched
_LINE = 64  # bytes of a cache line
_AT_ONCE = 4  # heads: registers hold their sums


def add_attend(
    module: ir.Module, heads: int, size: int, isa: str, *, bfloat16: bool = False
) -> Function:
    """Write the function ``attend``: out [G, heads, size] of some of G groups of heads.

    Buffers: float32 query [G, heads, size], times log2(e) and the factor of scores; key and value
    [G, T, size], float32 or `bfloat16`; float32 scores [G, heads, padded] to write into. Numbers:
    the range of groups; T; padded, which is a multiple of 16 above T; and the strides in bytes of
    groups and tokens of keys and of values.
    """
    function = Function(module, "attend", BUFFERS, NUMBERS)
    _Attend(function, heads, size, 4 if isa == "avx512-vnni" else 2, bfloat16).write()
    return function.end()


class _Attend:
    def __init__(
        self, function: Function, heads: int, size: int, pieces_at_once: int, bfloat16: bool
    ) -> None:
        self._f, self._heads, self._size, self._bfloat16 = function, heads, size, bfloat16
        self._pieces = range(size // PIECE)
        self._pieces_at_once = pieces_at_once

    def write(self) -> None:
        f = self._f

        def group(g: Value) -> None:
            for first in range(0, self._heads, _AT_ONCE):
                heads = range(first, min(first + _AT_ONCE, self._heads))
                numbers = [f.add(f.mul(g, self._heads), head) for head in heads]
                self._scores = [
                    f.at(f["scores"], f.mul(number, f["padded"], 4)) for number in numbers
                ]
                key, self._value = (
                    f.at(f[name], f.mul(g, f[f"{name}_head"])) for name in ("key", "value")
                )
                self._write_scores(key, numbers)
                inverses = [self._weigh(scores) for scores in self._scores]
                self._add_values(self._value, numbers, inverses)

        f.loop(f["first"], f["last"], 1, group)

    def _write_scores(self, key: Value, heads: Sequence[Value]) -> None:
        f = self._f
        queries = [f.at(f["query"], f.mul(head, 4 * self._size)) for head in heads]
        last = f.mul(f.div(f["tokens"], PIECE), 4 * PIECE)
        for scores in self._scores:
            # Of the last vector, lanes without a token keep this: their weights are about 0.
            f.store(fill(F32, PIECE, -math.inf), scores, last, align=4)

        def token(t: Value) -> None:
            row = f.at(key, f.mul(t, f["key_row"]))
            self._prefetch(key, f.mul(f.add(t, _AHEAD), f["key_row"]), 1)
            # Values are read after all keys: they wait in the second cache, which holds more.
            self._prefetch(self._value, f.mul(t, f["value_row"]), 2)
            pieces = [self._loaded(row, piece) for piece in self._pieces]
            for query, scores in zip(queries, self._scores, strict=True):
                total = fill(F32, PIECE, 0.0)
                for number, piece in enumerate(pieces):
                    factors = f.load(query, f.number(4 * PIECE * number), FLOATS, align=4)
                    total = f.fma(factors, piece, total)
                f.store(f.sum_lanes(total), scores, f.mul(t, 4), align=4)

        f.loop(0, f["tokens"], 1, token)

    def _prefetch(self, base: Value, at: Value, cache: int) -> None:
        """Prefetch a token's key or value."""
        for line in range(0, self._size * (2 if self._bfloat16 else 4), _LINE):
            self._f.prefetch(base, self._f.add(at, line), cache)

    def _weigh(self, scores: Value) -> Value:
        """Replace scores by weights that are too large by a factor; return its inverse."""
        f, build = self._f, self._f.build
        larger = f.intrinsic("llvm.maxnum.v16f32", FLOATS, [FLOATS] * 2)
        largest = f.variable(FLOATS, fill(F32, PIECE, -math.inf))
        total = f.variable(FLOATS, fill(F32, PIECE, 0.0))

        def compare(t: Value) -> None:
            value = f.load(scores, f.mul(t, 4), FLOATS, align=4)
            build.store(build.call(larger, [value, build.load(largest)]), largest)

        f.loop(0, f["tokens"], PIECE, compare)
        reduce = f.intrinsic("llvm.vector.reduce.fmax.v16f32", F32, [FLOATS])
        top = f.splat(build.call(reduce, [build.load(largest)]), PIECE)

        def weigh(t: Value) -> None:
            at = f.mul(t, 4)
            weights = power_of_two(f, build.fsub(f.load(scores, at, FLOATS, align=4), top))
            f.store(weights, scores, at, align=4)
            build.store(build.fadd(build.load(total), weights), total)

        f.loop(0, f["tokens"], PIECE, weigh)
        return build.fdiv(ir.Constant(F32, 1.0), f.sum_lanes(build.load(total)))

    def _add_values(self, value: Value, heads: Sequence[Value], inverses: Sequence[Value]) -> None:
        f, build = self._f, self._f.build
        for first in range(0, len(self._pieces), self._pieces_at_once):
            some = self._pieces[first : first + self._pieces_at_once]
            sums = [[f.variable(FLOATS, fill(F32, PIECE, 0.0)) for _ in some] for _ in heads]

            def token(t: Value, some: range = some, sums: Sequence[Sequence[Value]] = sums) -> None:
                row = f.at(value, f.mul(t, f["value_row"]))
                pieces = [self._loaded(row, piece) for piece in some]
                for scores, totals in zip(self._scores, sums, strict=True):
                    weight = f.splat(f.load(scores, f.mul(t, 4), F32, align=4), PIECE)
                    for piece, total in zip(pieces, totals, strict=True):
                        build.store(f.fma(weight, piece, build.load(total)), total)

            f.loop(0, f["tokens"], 1, token)
            for head, inverse, totals in zip(heads, inverses, sums, strict=True):
                for piece, total in zip(some, totals, strict=True):
                    mean = build.fmul(build.load(total), f.splat(inverse, PIECE))
                    at = f.mul(f.add(f.mul(head, self._size), piece * PIECE), 4)
                    f.store(mean, f["out"], at, align=4)

    def _loaded(self, row: Value, piece: int) -> Value:
        """Return a piece of a token's key or value."""
        f = self._f
        return load_floats(f, row, f.number(PIECE * piece), bfloat16=self._bfloat16)
