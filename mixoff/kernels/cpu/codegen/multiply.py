"""y = x W^T straight from packed weights. Knows no memory management.

Of W = (W_q - zero) * scale, a group adds scale * (sum of W_q x - zero * sum of x) to y. Products of
codes and activations are exact integers (`dot`, `activations`).

For few tokens, a packed row of codes is read from memory once, and multiplied by the tokens one
after the other. Where registers have no room for the sums of all its rows, a span of it is read
several times, from the first cache after the first time. For more tokens, `TOGETHER` of them share
the cost of unpacking codes. Loops then run over pieces of rows, whose codes stay in the second
cache for all tokens, and over spans of columns, whose activations stay in the first cache for all
rows of a piece.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from mixoff.kernels.cpu.codegen.codes import FAR, Codes, Prefetch, Scales, existing_row
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
TOGETHER = 4  # tokens that share unpacked codes

_PIECE_NBYTES = 1 << 18  # of codes


def add_multiply(
    module: ir.Module, form: Form, isa: str, *, together: bool, prefetch: Prefetch = FAR
) -> Function:
    """Write the function ``multiply``: out[t, n] for the rows of some packed rows.

    Buffers: a `Packed` matrix, activations (`activations`), and float32 out [T, stride]. Numbers:
    the range of packed rows, R, N, K, T, K padded as activations are, and out's stride. If tokens
    are multiplied `together`, T is a multiple of `TOGETHER`, and results are added to out.
    """
    function = Function(module, "multiply", BUFFERS, NUMBERS)
    _Multiply(function, form, isa, TOGETHER if together else 1, prefetch).write()
    return function.end()


def _passes(form: Form, *, at_once: int) -> Iterator[Sequence[int]]:
    """Yield blocks of rows whose codes share planes, at most as many as registers hold sums of.

    AVX2 and AVX-VNNI have half as many registers as AVX-512, half as wide. For 3 bits and one token
    they take four rows at once even so: some sums are then spilled to the stack, which takes less
    time than sorting the bytes of two planes by lanes a second time.
    """
    for _, blocks in itertools.groupby(sorted(range(form.blocks), key=form.planes), form.planes):
        sharing = [*blocks]
        for first in range(0, len(sharing), at_once):
            yield sharing[first : first + at_once]


@dataclass(frozen=True)
class _Activations:
    """Pointers to a token's integers, steps and sums."""

    high: Value
    low: Value
    steps: Value
    sums: Value


class _Multiply:
    def __init__(
        self, function: Function, form: Form, isa: str, tokens: int, prefetch: Prefetch
    ) -> None:
        self._f, self._form, self._isa, self._prefetch = function, form, isa, prefetch
        if isa == "avx2" and form.nbits == 8:
            self._isa = "avx2-bytes"
        self._largest = largest_code(self._isa, form.nbits, form.lane // 4)
        self._groups = function.div(function["columns"], form.group_size)
        few_rows = tokens > 1 or (form.nbits == 2 and isa != "avx512-vnni")
        self._passes = [*_passes(form, at_once=2 if few_rows else form.blocks)]
        kind, rows = vector(F32, LANES), form.blocks
        self._sums = [[function.variable(kind) for _ in range(rows)] for _ in range(tokens)]
        self._widths = {LANES * form.lane, WIDTH}  # columns that `_step` takes
        if tokens == 1:
            # Fewer loads of scales. For several tokens it would be too much code.
            self._widths.add(LANES * form.unit)

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
        height = f.larger(least, f.build.udiv(f.number(_PIECE_NBYTES), f["columns"]))

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
        """Multiply a packed row's rows: all columns by one token, or a span by several."""
        f, form, prefetch = self._f, self._form, self._prefetch
        sizes = (f["packed_rows"], f["columns"])
        self._codes = Codes(f, form, r, *sizes, largest=self._largest, prefetch=prefetch)
        tokens = [f.add(token, n) for n in range(len(self._sums))]
        self._activations = [self._activations_of(t) for t in tokens]
        rows = [f.add(r, f.mul(f["packed_rows"], block)) for block in range(form.blocks)]
        scales_of = partial(Scales, f, form, groups=self._groups, fused=True, prefetch=prefetch)
        self._scales = [
            # Codes are times the factor, so zeros must be, too; results are divided by it below.
            scales_of(existing_row(f, n), times=factor)
            for n, factor in zip(rows, self._codes.factors, strict=True)
        ]
        for total in itertools.chain(*self._sums):
            f.build.store(fill(F32, LANES, 0.0), total)
        if start is None:
            f.loop(0, f["columns"], form.span, self._span)
        else:
            self._span(start)
        for t, sums in zip(tokens, self._sums, strict=True):
            for n, factor, total in zip(rows, self._codes.factors, sums, strict=True):
                y = f.sum_lanes(f.build.load(total))
                self._store(f.build.fmul(y, ir.Constant(F32, 1 / factor)), t, n)

    def _span(self, start: Value) -> None:
        """Add the products of a span of columns of all rows of a packed row."""
        f = self._f
        end = f.smaller(f.add(start, self._form.span), f["columns"])
        for blocks in self._passes:
            self._blocks = blocks
            for block in blocks:
                self._scales[block].begin(start)
            self._columns(start, end)
            self._codes.note_read(blocks)

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
        for width in sorted(self._widths, reverse=True):
            whole = f.mul(f.div(f.build.sub(end, start), width), width)
            stop = f.add(start, whole)
            f.loop(done, stop, width, partial(self._step, units=width // unit))
            done = stop
        rest = f.build.sub(end, done)
        if unit < WIDTH:  # K is a multiple of the group size: groups of 64 and more leave no rest
            has_rest = f.build.icmp_signed(">", rest, f.number(0))
            f.when(has_rest, lambda: self._step(done, WIDTH // unit, rest))

    def _store(self, y: Value, token: Value, n: Value) -> None:
        """Write a row's result, unless the row is padding of a packed row."""
        f = self._f
        at = f.mul(f.add(f.mul(token, f["stride"]), n), 4)

        def write() -> None:
            before = f.load(f["out"], at, F32, align=4) if len(self._sums) > 1 else None
            total = y if before is None else f.build.fadd(before, y)
            f.store(total, f["out"], at, align=4)

        f.when(f.build.icmp_signed("<", n, f["rows"]), write)

    def _step(self, k: Value, units: int, rest: Value | None = None) -> None:
        """Add the products of some units from k on; of a last, shorter vector `rest` columns.

        Lanes of whole steps are runs of `Form.lane` neighbours, as activations lie there
        (`activations`). What is left of a token lies in order: each lane has four neighbours.
        """
        f, unit, width = self._f, self._form.unit, LANES * self._form.lane
        factors = self._factors(k, units, rest)
        if units * unit < width:
            lanes = [4 * lane // unit for lane in range(LANES)]
            self._add(factors, lanes, [self._codes.planes(k, self._blocks, rest)], k)
            return
        runs = runs_of_lanes(self._form.lane)
        for first in range(0, units * unit, width):
            lanes = [(first + run * self._form.lane) // unit for run in runs]
            at = f.add(k, first)
            self._add(factors, lanes, self._sorted(at), at)

    def _factors(self, k: Value, units: int, rest: Value | None) -> list[list[Value]]:
        """Add the zeros' share of some units; return the factors of each token's products.

        -scale * zero * (sum of x) is one number a unit, and is added in a lane of its own. The
        factor of a unit's integer products is its scale times the step of its activations.
        """
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
        for token, totals in zip(self._activations, self._pass_sums(), strict=True):
            steps = self._floats(token.steps, f.div(k, WIDTH, exact=True), units * unit // WIDTH)
            steps = f.pick(steps, [n * unit // WIDTH for n in range(units)])
            sums = self._widened(self._floats(token.sums, f.div(k, unit, exact=True), units))
            for offset, total in zip(offsets, totals, strict=True):
                f.build.store(f.fma(offset, sums, f.build.load(total)), total)
            factors.append([f.build.fmul(scale, steps) for scale in scales])
        return factors

    def _pass_sums(self) -> list[list[Value]]:
        """Return each token's sums of the rows of this pass."""
        return [[sums[block] for block in self._blocks] for sums in self._sums]

    def _sorted(self, k: Value) -> list[Sequence[Value]]:
        """Return vectors of packed bytes by lanes: activations lie in this order already.

        Packed bytes are sorted once for all rows that share them.
        """
        f, vectors = self._f, self._form.lane // 4
        parts = [self._codes.planes(f.add(k, n * WIDTH), self._blocks) for n in range(vectors)]
        planes = [
            plane if plane[0] is None else by_lane(f, plane) for plane in zip(*parts, strict=True)
        ]
        return list(zip(*planes, strict=True))  # [vectors][planes]

    def _add(
        self,
        factors: list[list[Value]],
        lanes: list[int],
        vectors: Sequence[Sequence[Value]],
        k: Value,
    ) -> None:
        """Add products of codes and activations, each times some lanes of its row's factors."""
        f = self._f
        for token_factors, token, totals in zip(
            factors, self._activations, self._pass_sums(), strict=True
        ):
            activations = self._integers(token, k, len(vectors))
            codes = [map(partial(self._codes.row, block=n), vectors) for n in self._blocks]
            products = dots(f, self._isa, codes, *activations)
            for product, factor, total in zip(products, token_factors, totals, strict=True):
                product = f.build.sitofp(product, vector(F32, LANES))
                sums = f.fma(f.pick(factor, lanes), product, f.build.load(total))
                f.build.store(sums, total)

    def _integers(
        self, token: _Activations, k: Value, vectors: int
    ) -> tuple[list[Value], list[Value]]:
        f, bytes_ = self._f, vector(I8, WIDTH)
        at = [f.add(k, n * WIDTH) for n in range(vectors)]
        high, low = ([f.load(base, n, bytes_) for n in at] for base in (token.high, token.low))
        return high, low

    def _floats(self, base: Value, index: Value, lanes: int) -> Value:
        return self._f.load(base, self._f.mul(index, 4), vector(F32, lanes), align=4)

    def _widened(self, value: Value) -> Value:
        """Return a vector of 16 lanes, of which those that it lacks are 0."""
        if value.type.count == LANES:
            return value
        zeros = fill(F32, value.type.count, 0.0)
        lanes = [n if n < value.type.count else value.type.count for n in range(LANES)]
        mask = ir.Constant(vector(I32, LANES), lanes)
        return self._f.build.shuffle_vector(value, zeros, mask)
