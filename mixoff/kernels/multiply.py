"""y = x W^T straight from packed weights. Knows no memory management.

Of W = (W_q - zero) * scale, a group adds scale * (sum of W_q x - zero * sum of x) to y. Products of
codes and activations are exact integers (`dot`, `activations`).

For few tokens a row of codes is read from memory once, and goes through the tokens one by one; of
three bits, the plane of high bits comes from the cache for the second half of its rows. For
many, `TOGETHER` tokens share what it costs to unpack codes, and loops go through pieces: of rows,
so that codes stay in the second cache for all tokens, and of columns, so that activations stay in
the first cache for all rows of a piece.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

from llvmlite import ir

from mixoff.kernels.codes import Codes, Scales, existing_row
from mixoff.kernels.dot import LANES, WIDTH, by_lane, dots, largest_code, runs_of_lanes
from mixoff.kernels.ir import F32, I8, I32, Function, Value, fill, vector
from mixoff.kernels.layout import Form

BUFFERS = ("codes", "scale", "zero", "pairs", "high", "low", "steps", "sums", "out")
NUMBERS = ("first", "last", "packed_rows", "rows", "columns", "tokens", "padded", "stride")
TOGETHER = 4

_SPAN = 2048  # columns of a piece; whole pairs of scales, and whole steps
_PIECE = 1 << 18  # bytes of codes


def add_multiply(module: ir.Module, form: Form, isa: str, *, together: bool) -> Function:
    """Write the function ``multiply``: out[t, n] for the rows of some packed rows.

    Buffers: a `Packed` matrix, activations (`activations`), and float32 out [T, stride]. Numbers:
    the packed rows to go through, R, N, K, T, K as activations pad it, and out's stride. If tokens
    go `together`, T is a multiple of `TOGETHER`, and what is computed is added to out.
    """
    function = Function(module, "multiply", BUFFERS, NUMBERS)
    _Multiply(function, form, isa, TOGETHER if together else 1).write()
    return function.end()


def _passes(form: Form, *, at_once: int) -> Iterator[Sequence[int]]:
    """Yield rows whose codes share planes, some at once: registers have no room for more."""
    for _, blocks in itertools.groupby(sorted(range(form.blocks), key=form.planes), form.planes):
        rows = [*blocks]
        for first in range(0, len(rows), at_once):
            yield rows[first : first + at_once]


class _Multiply:
    def __init__(self, function: Function, form: Form, isa: str, tokens: int) -> None:
        self._f, self._form, self._isa = function, form, isa
        if isa == "avx2" and form.nbits == 8:
            self._isa = "avx2-bytes"
        self._largest = largest_code(self._isa, form.nbits, form.lane // 4)
        self._groups = function.div(function["columns"], form.group_size)
        self._passes = [*_passes(form, at_once=form.blocks if tokens == 1 else 2)]
        kind, rows = vector(F32, LANES), len(self._passes[0])
        self._sums = [[function.variable(kind) for _ in range(rows)] for _ in range(tokens)]
        self._wide = {LANES * form.lane, WIDTH}  # columns of steps
        if tokens == 1:
            self._wide.add(LANES * form.unit)  # fewer loads of scales; too much code for more

    def write(self) -> None:
        f = self._f
        if len(self._sums) == 1:
            whole = (f.number(0), f["columns"])
            f.loop(
                f["first"],
                f["last"],
                1,
                lambda r: f.loop(0, f["tokens"], 1, lambda token: self._row(r, token, *whole)),
            )
            return
        least = f.number(1)
        height = f.larger(least, f.build.udiv(f.number(_PIECE), f["columns"]))

        def piece(top: Value) -> None:
            bottom = f.smaller(f.add(top, height), f["last"])

            def span(k: Value) -> None:
                end = f.smaller(f.add(k, _SPAN), f["columns"])
                f.loop(
                    0,
                    f["tokens"],
                    TOGETHER,
                    lambda token: f.loop(top, bottom, 1, lambda r: self._row(r, token, k, end)),
                )

            f.loop(0, f["columns"], _SPAN, span)

        f.loop(f["first"], f["last"], height, piece)

    def _row(self, r: Value, token: Value, start: Value, end: Value) -> None:
        """Go through some columns of the rows of a packed row, for one token or those together."""
        f, form = self._f, self._form
        self._codes = Codes(f, form, r, f["packed_rows"], f["columns"], largest=self._largest)
        tokens = [f.add(token, n) for n in range(len(self._sums))]
        self._starts = [f.mul(t, f["padded"]) for t in tokens]  # bytes of a plane of activations
        for blocks in self._passes:
            self._blocks = blocks
            rows = [f.add(r, f.mul(f["packed_rows"], block)) for block in blocks]
            places = [existing_row(f, n) for n in rows]
            self._scales = [Scales(f, form, n, self._groups, fused=True) for n in places]
            for place in itertools.chain(*self._sums):
                f.build.store(fill(F32, LANES, 0.0), place)
            self._columns(start, end)
            for t, sums in zip(tokens, self._sums, strict=True):
                for n, place in zip(rows, sums, strict=True):
                    self._store(f.sum_lanes(f.build.load(place)), t, n)

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
        for row in self._scales:
            scale, zero = (f.pick(v, lanes) for v in row.read(f.div(k, size), groups, present))
            scales.append(scale)
            offsets.append(self._widened(f.build.fneg(f.build.fmul(scale, zero))))
        factors = []
        for start, places in zip(self._starts, self._sums, strict=True):
            at = f.add(start, k)
            steps = self._floats("steps", f.div(at, WIDTH), units * unit // WIDTH)
            steps = f.pick(steps, [n * unit // WIDTH for n in range(units)])
            sums = self._widened(self._floats("sums", f.div(at, unit), units))
            for offset, place in zip(offsets, places, strict=True):
                f.build.store(f.fma(offset, sums, f.build.load(place)), place)
            every = [1 / self._codes.factors[block] for block in self._blocks]  # exact
            fractions = [fill(F32, units, fraction) for fraction in every]
            factors.append(
                [
                    f.build.fmul(scale, f.build.fmul(steps, fraction))
                    for scale, fraction in zip(scales, fractions, strict=True)
                ]
            )
        return factors

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
        for start, own, places in zip(self._starts, factors, self._sums, strict=True):
            activations = self._activations(f.add(start, k), len(vectors))
            codes = [map(partial(self._codes.row, block=n), vectors) for n in self._blocks]
            products = dots(f, self._isa, codes, *activations)
            for product, factor, place in zip(products, own, places, strict=True):
                product = f.build.sitofp(product, vector(F32, LANES))
                total = f.fma(f.pick(factor, lanes), product, f.build.load(place))
                f.build.store(total, place)

    def _activations(self, start: Value, vectors: int) -> tuple[list[Value], list[Value]]:
        f, bytes_ = self._f, vector(I8, WIDTH)
        at = [f.add(start, n * WIDTH) for n in range(vectors)]
        high, low = ([f.load(f[name], n, bytes_) for n in at] for name in ("high", "low"))
        return high, low

    def _floats(self, name: str, index: Value, lanes: int) -> Value:
        return self._f.load(self._f[name], self._f.mul(index, 4), vector(F32, lanes), align=4)

    def _widened(self, value: Value) -> Value:
        """Return a vector of 16 lanes, the further ones 0."""
        if value.type.count == LANES:
            return value
        nothing = fill(F32, value.type.count, 0.0)
        lanes = [n if n < value.type.count else value.type.count for n in range(LANES)]
        chosen = ir.Constant(vector(I32, LANES), lanes)
        return self._f.build.shuffle_vector(value, nothing, chosen)
