"""y = x W^T for groups along the outputs (`layout.PackedAxis0`): the kernel for few tokens.

Of W = (W_q - zero) * scale, the rows of a bundle share a vector of scales, so that x' = scale * x
is computed once for all of them: y is the sum of W_q x', less the sum of zero * x', which all rows
of the bundle share. x' are integers of 16 bits times a step (`activations`), so that products are
exact. A step is shared by 16 of them: the four neighbours of a lane in four vectors.
"""

from collections.abc import Sequence
from functools import partial, reduce

from llvmlite import ir

from mixoff.kernels.cpu.codegen.activations import LARGEST, split
from mixoff.kernels.cpu.codegen.axis0_expand import (
    MATRIX,
    PIECE,
    SIZES,
    WIDE,
    Axis0Scales,
    load_columns,
)
from mixoff.kernels.cpu.codegen.codes import Codes, Prefetch
from mixoff.kernels.cpu.codegen.dot import LANES, WIDTH, dots, largest_code
from mixoff.kernels.cpu.codegen.ir import (
    BYTES,
    F32,
    I8,
    I32,
    Function,
    Value,
    fill,
    vector,
)
from mixoff.kernels.layout import CodeForm

_CHUNK = 8 * WIDE  # columns whose x' are kept at a time, for all rows of a bundle
# Measured to be the best on Zen 5 and on Zen 4.
NEAR, FAR = Prefetch(_CHUNK, 4096, 1), Prefetch(_CHUNK, 1024, 2)
_SMALLEST_STEP = 2.0**-126  # its inverse is finite; smaller activations count as 0

_FLOATS = vector(F32, PIECE)


def add_multiply(module: ir.Module, form: CodeForm, isa: str, prefetch: Prefetch = FAR) -> Function:
    """Write the function ``multiply``, which adds to out[t, n] for the rows of some bundles.

    Buffers: a `PackedAxis0` matrix as `axis0_expand.add_expand` takes it, float32 x [T, K] and out
    [T, N]. Numbers: the range of bundles, R, B, K, S, and T.
    """
    function = Function(module, "multiply", (*MATRIX, "x", "out"), (*SIZES, "tokens"))
    _Multiply(function, form, isa, prefetch).write()
    return function.end()


class _Multiply:
    def __init__(self, function: Function, form: CodeForm, isa: str, prefetch: Prefetch) -> None:
        self._f, self._form, self._prefetch = function, form, prefetch
        self._isa = "avx2-bytes" if isa == "avx2" and form.nbits == 8 else isa
        self._sums = [function.variable(vector(F32, LANES)) for _ in range(form.blocks)]
        self._zeros = function.variable(_FLOATS)  # the sum of zero * x'
        sizes = {"high": _CHUNK, "low": _CHUNK, "steps": _CHUNK // WIDE * 4 * LANES}
        self._arrays = {name: self._array(size) for name, size in sizes.items()}

    def write(self) -> None:
        f = self._f
        whole = f.mul(f.div(f["columns"], WIDE), WIDE)

        def bundle(b: Value) -> None:
            self._bundle, self._scales = b, Axis0Scales(f, b, self._prefetch)
            f.loop(0, whole, _CHUNK, chunk)
            f.loop(whole, f["columns"], WIDTH, last)

        def chunk(k: Value) -> None:
            end = f.add(k, _CHUNK)
            end = f.build.select(f.build.icmp_signed("<", end, whole), end, whole)
            f.loop(0, f["tokens"], 1, lambda token: self._columns(token, k, end, WIDE))

        def last(k: Value) -> None:
            """Add the columns that are left, a vector at a time; the last one may be shorter."""
            left, end = f.build.sub(f["columns"], k), f.add(k, WIDTH)
            f.loop(0, f["tokens"], 1, lambda token: self._columns(token, k, end, WIDTH, left))

        f.loop(f["first"], f["last"], 1, bundle)

    def _array(self, nbytes: int) -> Value:
        """Return bytes on the stack, aligned so that no vector crosses a cache line."""
        array = self._f.variable(ir.ArrayType(I8, nbytes))
        array.align = WIDTH
        return array

    def _columns(
        self, token: Value, start: Value, end: Value, wide: int, left: Value | None = None
    ) -> None:
        """Add the products of some columns to all rows of the bundle."""
        f = self._f
        f.build.store(ir.Constant(_FLOATS, None), self._zeros)
        f.loop(start, end, wide, lambda k: self._fold(token, k, start, wide, left))
        zeros = f.build.fmul(f.build.load(self._zeros), self._scales.zero_step)
        total = f.sum_lanes(zeros)
        height = f.build.udiv(f["packed_rows"], f["bundles"])

        def row(number: Value) -> None:
            r = f.add(f.mul(number, f["bundles"]), self._bundle)
            self._row(r, start, end, wide, left)
            sums = zip(self._sums, self._factors, strict=True)
            for block, (products, factor) in enumerate(sums):
                y = f.build.fmul(f.sum_lanes(f.build.load(products)), ir.Constant(F32, 1 / factor))
                n = f.add(f.mul(f["packed_rows"], block), r)
                rows = f.mul(f["packed_rows"], self._form.blocks)
                at = f.mul(f.add(f.mul(token, rows), n), 4)
                before = f.load(f["out"], at, F32, align=4)
                f.store(f.build.fadd(before, f.build.fsub(y, total)), f["out"], at, align=4)

        f.loop(0, height, 1, row)

    # ---- activations

    def _fold(self, token: Value, k: Value, start: Value, wide: int, left: Value | None) -> None:
        """Write x' of some columns as integers, and their steps; add the zeros' share."""
        f, build = self._f, self._f.build
        self._scales.begin(k, wide)
        x = f.add(f.mul(token, f["columns"]), k)
        values = []
        for offset in range(0, wide, PIECE):
            count = None if left is None else build.sub(left, f.number(offset))
            value = load_columns(f, f["x"], f.mul(f.add(x, offset), 4), _FLOATS, 4, count)
            values.append(build.fmul(value, self._scales.scale(offset, count)))
        step, inverse = self._steps(values)
        position = build.sub(k, start)
        f.store(step, self._base("steps"), f.mul(f.div(position, WIDE), 4 * LANES), align=WIDTH)
        pieces = WIDTH // PIECE
        whole = [
            self._rounded(build.fmul(value, self._of_lanes(inverse, number % pieces)))
            for number, value in enumerate(values)
        ]
        halves = [
            split(f, whole[number : number + pieces], self._isa)
            for number in range(0, len(whole), pieces)
        ]
        for number, vectors in enumerate(halves):
            for name, bytes_ in zip(("high", "low"), vectors, strict=True):
                f.store(bytes_, self._base(name), f.add(position, number * WIDTH), align=WIDTH)
        self._add_zeros(step, halves, left)

    def _add_zeros(
        self, step: Value, halves: Sequence[tuple[Value, Value]], left: Value | None
    ) -> None:
        """Add the sum of zero * x': zeros are bytes, which are multiplied as codes are."""
        f, build = self._f, self._f.build
        zeros = [self._scales.zero_bytes(n * WIDTH, left) for n in range(len(halves))]
        ones = [fill(I8, WIDTH, 1)] * len(halves)
        isa = "avx2-bytes" if self._isa == "avx2" else self._isa
        sums = dots(f, isa, [zeros, ones], *zip(*halves, strict=True))
        of_zeros, of_ones = (build.sitofp(total, _FLOATS) for total in sums)
        of_zeros = build.fsub(of_zeros, build.fmul(of_ones, self._scales.zero_zero))
        build.store(f.fma(of_zeros, step, build.load(self._zeros)), self._zeros)

    def _steps(self, values: Sequence[Value]) -> tuple[Value, Value]:
        """Return the step of each lane's values and its inverse, <16 x float> each."""
        f, build, pieces = self._f, self._f.build, WIDTH // PIECE
        absolute = f.intrinsic("llvm.fabs.v16f32", _FLOATS, [_FLOATS])
        sizes = [build.call(absolute, [value]) for value in values]
        parts = [reduce(self._larger, sizes[n::pieces]) for n in range(pieces)]
        first, second = f.join(parts[0], parts[1]), f.join(parts[2], parts[3])
        neighbours = [
            build.shuffle_vector(
                first,
                second,
                ir.Constant(vector(I32, LANES), [4 * lane + n for lane in range(LANES)]),
            )
            for n in range(4)
        ]
        largest = reduce(self._larger, neighbours)
        step = build.fmul(largest, fill(F32, LANES, 1 / LARGEST))
        is_invertible = build.fcmp_ordered(">=", step, fill(F32, LANES, _SMALLEST_STEP))
        inverse = build.fdiv(fill(F32, LANES, 1.0), step)
        return step, build.select(is_invertible, inverse, fill(F32, LANES, 0.0))

    def _larger(self, a: Value, b: Value) -> Value:
        larger = self._f.intrinsic("llvm.maxnum.v16f32", _FLOATS, [_FLOATS] * 2)
        return self._f.build.call(larger, [a, b], fastmath=["nnan"])

    def _of_lanes(self, value: Value, piece: int) -> Value:
        """Return, for each column of a piece, the number that belongs to its lane."""
        return self._f.pick(value, [(piece * PIECE + n) // 4 for n in range(PIECE)])

    def _rounded(self, value: Value) -> Value:
        f = self._f
        even = f.intrinsic("llvm.rint.v16f32", _FLOATS, [_FLOATS])
        return f.build.fptosi(f.build.call(even, [value]), vector(I32, PIECE))

    def _base(self, name: str) -> Value:
        return self._f.build.bitcast(self._arrays[name], BYTES)

    # ---- products

    def _row(self, r: Value, start: Value, end: Value, wide: int, left: Value | None) -> None:
        """Sum the products of the codes of a packed row's rows."""
        f, build, vectors = self._f, self._f.build, wide // WIDTH
        largest = largest_code(self._isa, self._form.nbits, WIDE // WIDTH)
        sizes = (f["packed_rows"], f["columns"])
        codes = Codes(f, self._form, r, *sizes, largest=largest, prefetch=self._prefetch)
        self._factors = codes.factors
        for total in self._sums:
            build.store(fill(F32, LANES, 0.0), total)

        def step(k: Value) -> None:
            position = build.sub(k, start)
            blocks = range(self._form.blocks)
            planes = [codes.planes(f.add(k, n * WIDTH), blocks, left) for n in range(vectors)]
            rows = [map(partial(codes.row, block=block), planes) for block in blocks]
            at = [f.add(position, n * WIDTH) for n in range(vectors)]
            high, low = ([self._bytes(name, n) for n in at] for name in ("high", "low"))
            steps = f.mul(f.div(position, WIDE), 4 * LANES)
            factor = f.load(self._base("steps"), steps, vector(F32, LANES), align=WIDTH)
            products = dots(f, self._isa, rows, high, low)
            for product, total in zip(products, self._sums, strict=True):
                value = build.sitofp(product, vector(F32, LANES))
                build.store(f.fma(factor, value, build.load(total)), total)

        f.loop(start, end, wide, step)

    def _bytes(self, name: str, at: Value) -> Value:
        return self._f.load(self._base(name), at, vector(I8, WIDTH), align=WIDTH)
