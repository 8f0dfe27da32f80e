"""Activations as integers of 16 bits, so that their products with codes are exact. Knows x only.

A block of 64 neighbours of a token shares a step: x = step * q with q from -32639 to 32639, and
q = 256 * high + low, both signed bytes. The rounding is at most a 65,278th of the block's largest
activation. The sums of step * q over the units that kernels need (`layout`) are stored, too.

A block with NaN or infinity has NaN or infinity for its step. Whatever its integers are then, their
products with the step aren't finite, and neither is any result for the token.

Activations for 16 lanes (`layout.Form.lane`) lie by dwords (`dot.by_lane`): the first four of each
lane, then the next four of each, so that a lane sums neighbours. What is left of a token lies in
order.
"""

from collections.abc import Sequence
from typing import Literal

from llvmlite import ir

from mixoff.kernels.cpu.codegen.dot import LANES, WIDTH, by_lane
from mixoff.kernels.cpu.codegen.floats import FLOATS, PIECE, from_bfloat16, silu
from mixoff.kernels.cpu.codegen.ir import (
    F32,
    I8,
    I16,
    I32,
    Function,
    Value,
    fill,
    vector,
)

LARGEST = 127 * 256 + 127
BUFFERS = ("x", "high", "low", "steps", "sums")
NUMBERS = ("first", "last", "columns", "padded", "pieces")

Source = Literal["float32", "bfloat16", "gated"]


def piece_size(lane: int) -> int:
    """Return the number of a token's columns that ``prepare`` processes at a time."""
    return LANES * lane


def add_prepare(module: ir.Module, unit: int, lane: int, source: Source) -> Function:
    """Write the function ``prepare``: the integers of some pieces of tokens.

    Buffers: x [T, K], float32 or bfloat16, or float32 [T, 2, K] for silu(x[t, 0]) * x[t, 1]
    (`gated`); high and low, int8 [T, padded]; float32 steps [T, padded / 64] and sums
    [T, padded / unit]. Numbers: the range of pieces, all of a token before those of the next; K;
    K padded to a multiple of 64; and the number of pieces of a token (`piece_size`).
    """
    function = Function(module, "prepare", BUFFERS, NUMBERS)
    _Prepare(function, unit, lane, source).write()
    return function.end()


class _Prepare:
    def __init__(self, function: Function, unit: int, lane: int, source: Source) -> None:
        self._f, self._unit, self._lane, self._source = function, unit, lane, source

    def write(self) -> None:
        f, build = self._f, self._f.build
        size = piece_size(self._lane)
        vectors_end = f.mul(f.div(f["columns"], WIDTH), WIDTH)

        def piece(number: Value) -> None:
            token = build.udiv(number, f["pieces"])
            k = f.mul(build.sub(number, f.mul(token, f["pieces"])), size)
            size_of_x = f.mul(f["columns"], 2) if self._source == "gated" else f["columns"]
            self._x, self._start = f.mul(token, size_of_x), f.mul(token, f["padded"])
            end = f.smaller(f.add(k, size), f["columns"])
            whole = build.icmp_signed("==", end, f.add(k, size))
            with build.if_else(whole) as (then, otherwise):
                with then:
                    self._lanes(k, size // WIDTH)
                with otherwise:
                    f.loop(k, vectors_end, WIDTH, self._block)
                    rest = build.sub(end, vectors_end)
                    has_rest = build.icmp_signed(">", rest, f.number(0))
                    f.when(has_rest, lambda: self._block(vectors_end, rest))

        f.loop(f["first"], f["last"], 1, piece)

    def _lanes(self, k: Value, blocks: int) -> None:
        """Write a whole piece of 16 lanes, by dwords."""
        f = self._f
        starts = [f.add(k, block * WIDTH) for block in range(blocks)]
        integers = [self._integers(start) for start in starts]
        for name, values in zip(("high", "low"), zip(*integers, strict=True), strict=True):
            for start, value in zip(starts, by_lane(f, values), strict=True):
                f.store(value, f[name], f.add(self._start, start))

    def _block(self, k: Value, rest: Value | None = None) -> None:
        """Write a block in order, or the `rest` activations of a last one."""
        f = self._f
        for name, values in zip(("high", "low"), self._integers(k, rest), strict=True):
            f.store(values, f[name], f.add(self._start, k))

    def _integers(self, k: Value, rest: Value | None = None) -> tuple[Value, Value]:
        """Return a block's high and low bytes, <64 x i8> each; write its step and sums."""
        f, build = self._f, self._f.build
        pieces = [self._load(k, first, rest) for first in range(0, WIDTH, PIECE)]
        step = build.fdiv(self._largest(pieces), ir.Constant(F32, float(LARGEST)))
        # 0 for blocks of zeros, and for NaN: 1 / step wouldn't be finite.
        positive = build.fcmp_ordered(">", step, ir.Constant(F32, 0.0))
        inverse = build.fdiv(ir.Constant(F32, 1.0), step)
        inverse = f.splat(build.select(positive, inverse, ir.Constant(F32, 0.0)), PIECE)
        whole = [self._rounded(build.fmul(piece, inverse)) for piece in pieces]
        at = f.add(self._start, k)
        f.store(step, f["steps"], f.mul(f.div(at, WIDTH), 4), align=4)
        self._store_sums(whole, step, f.div(at, self._unit))
        return split(f, whole)

    def _load(self, k: Value, first: int, rest: Value | None) -> Value:
        f, at = self._f, self._f.add(self._x, k, first)
        count = None if rest is None else f.build.sub(rest, f.number(first))
        if self._source == "gated":
            gate, up = (self._floats(index, count) for index in (at, f.add(at, f["columns"])))
            return f.build.fmul(silu(f, gate), up)
        if self._source == "float32":
            return self._floats(at, count)
        return from_bfloat16(f, self._numbers(at, count, vector(I16, PIECE), 2))

    def _floats(self, index: Value, count: Value | None) -> Value:
        return self._numbers(index, count, FLOATS, 4)

    def _numbers(self, index: Value, count: Value | None, kind: ir.VectorType, size: int) -> Value:
        """Return the numbers of x from an index on; only the first `count` if it isn't None."""
        f, at = self._f, self._f.mul(index, size)
        if count is None:
            return f.load(f["x"], at, kind, align=size)
        return f.load_first(f["x"], at, kind, count)

    def _largest(self, pieces: list[Value]) -> Value:
        """Return the largest absolute number; NaN counts as larger than infinity.

        Without signs, floats have the order of their bits as integers, so that NaN isn't lost as it
        is in comparisons of floats.
        """
        f, kind = self._f, vector(I32, PIECE)
        larger = f.intrinsic("llvm.smax.v16i32", kind, [kind] * 2)
        largest, *rest = (
            f.build.and_(f.build.bitcast(piece, kind), fill(I32, PIECE, 0x7FFFFFFF))
            for piece in pieces
        )
        for bits in rest:
            largest = f.build.call(larger, [largest, bits])
        reduce = f.intrinsic("llvm.vector.reduce.smax.v16i32", I32, [kind])
        return f.build.bitcast(f.build.call(reduce, [largest]), F32)

    def _rounded(self, value: Value) -> Value:
        """Return the nearest integers; any integer for NaN, whose step isn't finite either."""
        even = self._f.intrinsic("llvm.rint.v16f32", FLOATS, [FLOATS])
        return self._f.build.fptosi(self._f.build.call(even, [value]), vector(I32, PIECE))

    def _store_sums(self, whole: list[Value], step: Value, index: Value) -> None:
        f, unit = self._f, self._unit
        if unit < PIECE:
            parts = [f.pick(q, range(n, n + unit)) for q in whole for n in range(0, PIECE, unit)]
            joined = [[part] for part in parts]
        else:
            pieces = unit // PIECE
            joined = [whole[n : n + pieces] for n in range(0, len(whole), pieces)]
        for number, (total, *rest) in enumerate(joined):
            for integers in rest:
                total = f.build.add(total, integers)
            kind = total.type
            name = f"llvm.vector.reduce.add.v{kind.count}i32"
            total = f.build.call(f.intrinsic(name, I32, [kind]), [total])
            value = f.build.fmul(f.build.sitofp(total, F32), step)
            f.store(value, f["sums"], f.mul(f.add(index, number), 4), align=4)


def split(function: Function, whole: Sequence[Value], isa: str = "") -> tuple[Value, Value]:
    """Return the high and low bytes, <64 x i8> each, of four <16 x i32> of integers."""
    if isa == "avx512-vnni":
        return _packed(function, whole)
    build = function.build
    rounded = [build.add(q, fill(I32, PIECE, 128)) for q in whole]
    high = [build.ashr(q, fill(I32, PIECE, 8)) for q in rounded]
    # 256 * high doesn't change the last byte, so that low is the last byte of q.
    return _bytes(function, high), _bytes(function, whole)


def _packed(function: Function, whole: Sequence[Value]) -> tuple[Value, Value]:
    """Split by AVX-512's packing instructions: a third as many, but they reorder dwords."""
    build, words, dwords = function.build, vector(I16, WIDTH // 2), vector(I32, PIECE)
    bytes_ = vector(I8, WIDTH)
    to_words = function.intrinsic("llvm.x86.avx512.packssdw.512", words, [dwords] * 2)
    to_bytes = function.intrinsic("llvm.x86.avx512.packsswb.512", bytes_, [words] * 2)
    pairs = [build.call(to_words, [*whole[n : n + 2]]) for n in (0, 2)]
    eight = fill(I16, WIDTH // 2, 8)
    high = [build.ashr(build.add(q, fill(I16, WIDTH // 2, 128)), eight) for q in pairs]
    low = [build.sub(q, build.shl(h, eight)) for q, h in zip(pairs, high, strict=True)]
    order = [4 * lane + piece for piece in range(4) for lane in range(4)]
    packed = [build.bitcast(build.call(to_bytes, words), dwords) for words in (high, low)]
    high_bytes, low_bytes = (build.bitcast(function.pick(v, order), bytes_) for v in packed)
    return high_bytes, low_bytes


def _bytes(function: Function, pieces: Sequence[Value]) -> Value:
    a, b, c, d = (function.build.trunc(piece, vector(I8, PIECE)) for piece in pieces)
    return function.join(function.join(a, b), function.join(c, d))
