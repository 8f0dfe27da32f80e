"""y = x W^T straight from packed weights. Knows no memory management.

Of W = (W_q - zero) * scale, a group adds scale * (sum of W_q x - zero * sum of x) to y. Products of
codes and activations are exact integers (`dot`, `activations`).

For few tokens a row of codes is read from memory once, and goes through the tokens one by one; a
span of it comes from the cache again where registers have no room for all of its rows. For many,
`TOGETHER` tokens share what it costs to unpack codes, and loops go through pieces: of rows, so that
codes stay in the second cache for all tokens, and of columns, so that activations stay in the first
cache for all rows of a piece.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from mixoff.kernels.cpu.codegen.codes import FAR, Ahead, Codes, Scales, existing_row
from mixoff.kernels.cpu.codegen.dot import (
    LANES,
    WIDTH,
    by_lane,
    dots,
    largest_code,
    runs_of_lanes,
)
from mixoff.kernels.cpu.codegen.ir import F32, I8, I32, Function, Value, fill, vector
from mixoff.kernels.layout import Form

BUFFERS = ("codes", "scale", "zero", "pairs", "high", "low", "steps", "sums", "out")
NUMBERS = ("first", "last", "packed_rows", "rows", "columns", "tokens", "padded", "stride")
TOGETHER = 4

_PIECE = 1 << 18  # bytes of codes


def add_multiply(
    module: ir.Module, form: Form, isa: str, *, together: bool, ahead: Ahead = FAR
) -> Function:
    """Write the function ``multiply``: out[t, n] for the rows of some packed rows.

    Buffers: a `Packed` matrix, activations (`activations`), and float32 out [T, stride]. Numbers:
    the packed rows to go through, R, N, K, T, K as activations pad it, and out's stride. If tokens
    go `together`, T is a multiple of `TOGETHER`, and what is computed is added to out.
    """
    function = Function(module, "multiply", BUFFERS, NUMBERS)
    _Multiply(function, form, isa, TOGETHER if together else 1, ahead).write()
    return function.end()


def _passes(form: Form, *, at_once: int) -> Iterator[Sequence[int]]:
    """Yield rows whose codes share planes, some at once: registers have no room for more.

    AVX2 and AVX-VNNI have half as many registers, half as wide. Of three bits and one token they
    take four rows at once all the same: sorting two planes again takes longer than spilling sums.
    """
    for _, blocks in itertools.groupby(sorted(range(form.blocks), key=form.planes), form.planes):
        rows = [*blocks]
        for first in range(0, len(rows), at_once):
            yield rows[first : first + at_once]


@dataclass(frozen=True)
class _Activations:
    """Where a token's integers, steps and sums begin."""

    high: Value
    low: Value
    steps: Value
    sums: Value


class _Multiply:
    def __init__(self, function: Function, form: Form, isa: str, tokens: int, ahead: Ahead) -> None:
        self._f, self._form, self._isa, self._ahead = function, form, isa, ahead
        if isa == "avx2" and form.nbits == 8:
            self._isa = "avx2-bytes"
        self._largest = largest_code(self._isa, form.nbits, form.lane // 4)
        self._groups = function.div(function["columns"], form.group_size)
        few_rows = tokens > 1 or (form.nbits == 2 and isa != "avx512-vnni")
        self._passes = [*_passes(form, at_once=2 if few_rows else form.blocks)]
        kind, rows = vector(F32, LANES), form.blocks
        self._sums = [[function.variable(kind) for _ in range(rows)] for _ in range(tokens)]
        self._wide = {LANES * form.lane, WIDTH}  # columns of steps
        if tokens == 1:
            self._wide.add(LANES * form.unit)  # fewer loads of scales; too much code for more

    def write(self) -> None:
        f = self._f
        if len(self._sums) == 1:
            f.loop(
                f["first"],
                f["last"],
                1,
                lambda r: f.loop(0, f["tokens"], 1, lambda token: self._row(r, token)),
            )
            return
        least = f.number(1)
        height = f.larger(least, f.build.udiv(f.number(_PIECE), f["columns"]))

        def piece(top: Value) -> None:
            bottom = f.smaller(f.add(top, height), f["last"])

            def columns(k: Value) -> None:
                f.loop(
                    0,
                    f["tokens"],
                    TOGETHER,
                    lambda token: f.loop(top, bottom, 1, lambda r: self._row(r, token, k)),
                )

            f.loop(0, f["columns"], self._form.span, columns)

        f.loop(f["first"], f["last"], height, piece)

    def _row(self, r: Value, token: Value, start: Value | None = None) -> None:
        """Go through the rows of a packed row: all columns for one token, or a span for several."""
        f, form, ahead = self._f, self._form, self._ahead
        sizes = (f["packed_rows"], f["columns"])
        self._codes = Codes(f, form, r, *sizes, largest=self._largest, ahead=ahead)
        tokens = [f.add(token, n) for n in range(len(self._sums))]
        self._activations = [self._activations_of(t) for t in tokens]
        rows = [f.add(r, f.mul(f["packed_rows"], block)) for block in range(form.blocks)]
        read = partial(Scales, f, form, groups=self._groups, fused=True, ahead=ahead)
        self._scales = [
            read(existing_row(f, n), times=factor)  # sums are times that, too
            for n, factor in zip(rows, self._codes.factors, strict=True)
        ]
        for place in itertools.chain(*self._sums):
            f.build.store(fill(F32, LANES, 0.0), place)
        if start is None:
            f.loop(0, f["columns"], form.span, self._span)
        else:
            self._span(start)
        for t, sums in zip(tokens, self._sums, strict=True):
            for n, factor, place in zip(rows, self._codes.factors, sums, strict=True):
                total = f.sum_lanes(f.build.load(place))
                self._store(f.build.fmul(total, ir.Constant(F32, 1 / factor)), t, n)

    def _span(self, start: Value) -> None:
        """Go through a span of columns of all rows of a packed row."""
        f = self._f
        end = f.smaller(f.add(start, self._form.span), f["columns"])
        for blocks in self._passes:
            self._blocks = blocks
            for block in blocks:
                self._scales[block].begin(start)
            self._columns(start, end)
            self._codes.gone_through(blocks)

    def _activations_of(self, token: Value) -> _Activations:
        f = self._f
        start = f.mul(token, f["padded"])
        high, low = (f.at(f[name], start) for name in ("high", "low"))
        steps = f.at(f["steps"], f.div(start, WIDTH // 4))
        return _Activations(
            high, low, steps, f.at(f["sums"], f.mul(f.div(start, self._form.unit), 4))
        )

    def _columns(self, start: Value, end: Value) -> None:
        f, unit, done = self._f, self._form.unit, start
        for wide in sorted(self._wide, reverse=True):
            whole = f.mul(f.div(f.build.sub(end, start), wide), wide)
            stop = f.add(start, whole)
            f.loop(done, stop, wide, partial(self._step, units=wide // unit))
            done = stop
        rest = f.build.sub(end, done)
        if unit < WIDTH:  # groups of 64 and more leave no rest
            some = f.build.icmp_signed(">", rest, f.number(0))
            f.when(some, lambda: self._step(done, WIDTH // unit, rest))

    def _store(self, y: Value, token: Value, n: Value) -> None:
        """Write a row's result, if it isn't one of those that only fill up a packed row."""
        f = self._f
        at = f.mul(f.add(f.mul(token, f["stride"]), n), 4)

        def write() -> None:
            before = f.load(f["out"], at, F32, align=4) if len(self._sums) > 1 else None
            total = y if before is None else f.build.fadd(before, y)
            f.store(total, f["out"], at, align=4)

        f.when(f.build.icmp_signed("<", n, f["rows"]), write)

    def _step(self, k: Value, units: int, rest: Value | None = None) -> None:
        """Add what some columns from k on contribute; of a last, shorter vector `rest` columns."""
        f, unit, wide = self._f, self._form.unit, LANES * self._form.lane
        factors = self._factors(k, units, rest)
        if units * unit < wide:
            lanes = [4 * lane // unit for lane in range(LANES)]
            self._add(factors, lanes, [self._codes.planes(k, self._blocks, rest)], k)
            return
        runs = runs_of_lanes(self._form.lane)
        for first in range(0, units * unit, wide):
            lanes = [(first + run * self._form.lane) // unit for run in runs]
            at = f.add(k, first)
            self._add(factors, lanes, self._sorted(at), at)

    def _factors(self, k: Value, units: int, rest: Value | None) -> list[list[Value]]:
        """Add what zeros of some units contribute; return what each token's products are times."""
        f, unit, size = self._f, self._form.unit, self._form.group_size
        groups = max(1, units * unit // size)
        present = None if rest is None else f.div(rest, size)
        lanes = [n * unit // size for n in range(units)]
        scales, offsets = [], []
        for block in self._blocks:
            row = self._scales[block]
            scale, zero = (f.pick(v, lanes) for v in row.read(k, groups, present))
            scales.append(scale)
            offsets.append(self._widened(f.build.fneg(f.build.fmul(scale, zero))))
        factors = []
        for own, places in zip(self._activations, self._present_sums(), strict=True):
            steps = self._floats(own.steps, f.div(k, WIDTH, exact=True), units * unit // WIDTH)
            steps = f.pick(steps, [n * unit // WIDTH for n in range(units)])
            sums = self._widened(self._floats(own.sums, f.div(k, unit, exact=True), units))
            for offset, place in zip(offsets, places, strict=True):
                f.build.store(f.fma(offset, sums, f.build.load(place)), place)
            factors.append([f.build.fmul(scale, steps) for scale in scales])
        return factors

    def _present_sums(self) -> list[list[Value]]:
        """Return where each token's sums of the rows of this pass are."""
        return [[sums[block] for block in self._blocks] for sums in self._sums]

    def _sorted(self, k: Value) -> list[Sequence[Value]]:
        """Return vectors of packed bytes by lanes: activations lie in this order already."""
        f, vectors = self._f, self._form.lane // 4
        parts = [self._codes.planes(f.add(k, n * WIDTH), self._blocks) for n in range(vectors)]
        planes = [own if own[0] is None else by_lane(f, own) for own in zip(*parts, strict=True)]
        return list(zip(*planes, strict=True))  # [vectors][planes]

    def _add(
        self,
        factors: list[list[Value]],
        lanes: list[int],
        vectors: Sequence[Sequence[Value]],
        k: Value,
    ) -> None:
        """Add each token's and row's factors, some lanes of them, times the products of codes."""
        f = self._f
        for own, given, places in zip(
            factors, self._activations, self._present_sums(), strict=True
        ):
            activations = self._integers(given, k, len(vectors))
            codes = [map(partial(self._codes.row, block=n), vectors) for n in self._blocks]
            products = dots(f, self._isa, codes, *activations)
            for product, factor, place in zip(products, own, places, strict=True):
                product = f.build.sitofp(product, vector(F32, LANES))
                total = f.fma(f.pick(factor, lanes), product, f.build.load(place))
                f.build.store(total, place)

    def _integers(
        self, given: _Activations, k: Value, vectors: int
    ) -> tuple[list[Value], list[Value]]:
        f, bytes_ = self._f, vector(I8, WIDTH)
        at = [f.add(k, n * WIDTH) for n in range(vectors)]
        high, low = ([f.load(base, n, bytes_) for n in at] for base in (given.high, given.low))
        return high, low

    def _floats(self, base: Value, index: Value, lanes: int) -> Value:
        return self._f.load(base, self._f.mul(index, 4), vector(F32, lanes), align=4)

    def _widened(self, value: Value) -> Value:
        """Return a vector of 16 lanes, the further ones 0."""
        if value.type.count == LANES:
            return value
        nothing = fill(F32, value.type.count, 0.0)
        lanes = [n if n < value.type.count else value.type.count for n in range(LANES)]
        chosen = ir.Constant(vector(I32, LANES), lanes)
        return self._f.build.shuffle_vector(value, nothing, chosen)
