"""W = (W_q - zero) * scale for groups along the outputs (`layout.PackedAxis0`), for many tokens.

Has the scales and zeros that all kernels for such groups read.
"""

from llvmlite import ir

from mixoff.kernels.cpu.codegen.codes import FAR, Codes, Prefetch
from mixoff.kernels.cpu.codegen.dot import WIDTH
from mixoff.kernels.cpu.codegen.expand import Output, store_weights
from mixoff.kernels.cpu.codegen.ir import F32, I8, Function, Value, vector
from mixoff.kernels.layout import CodeForm

WIDE = 4 * WIDTH  # columns that are read at a time, at most

MATRIX = ("codes", "scale", "zero", "scale_step", "scale_zero", "zero_step", "zero_zero")
SIZES = ("first", "last", "packed_rows", "bundles", "columns", "period")

PIECE = 16  # columns that are floats at a time

_FLOATS = vector(F32, PIECE)


def add_expand(module: ir.Module, form: CodeForm, output: Output) -> Function:
    """Write the function ``expand``: out[block, r - from, k], [blocks, height, K], of packed rows.

    Buffers: a `PackedAxis0` matrix, whose steps and zeros are float32 here, and whose S numbers of
    scale_step and scale_zero are followed by WIDE more from their start; and out, in the type of
    `output`. Numbers: the range of packed rows, R, B, K, S, the first packed row of out, and the
    number of its packed rows.
    """
    function = Function(module, "expand", (*MATRIX, "out"), (*SIZES, "from", "height"))
    _Expand(function, form, output).write()
    return function.end()


class Axis0Scales:
    """Scales and zeros of some columns of a bundle, 16 at a time."""

    def __init__(self, function: Function, bundle: Value, prefetch: Prefetch = FAR) -> None:
        self._f, self._prefetch = function, prefetch
        self._start = function.mul(bundle, function["columns"])
        self.zero_step, self.zero_zero = (self._number(n) for n in ("zero_step", "zero_zero"))

    def begin(self, k: Value, wide: int) -> None:
        """Begin at a column, from which on `wide` are read, at most WIDE; prefetch later ones."""
        f, distance = self._f, self._prefetch.scales
        self._at = f.add(self._start, k)
        self._in_period = f.build.urem(self._at, f["period"])
        for line in range(distance, distance + wide, WIDTH):
            for name in ("scale", "zero"):
                f.prefetch(f[name], f.add(self._at, line), self._prefetch.cache)

    def scale(self, offset: int, count: Value | None) -> Value:
        """Return scales, <16 x float>; only the first `count` exist if it isn't None."""
        build = self._f.build
        step, zero = (
            self._read(name, self._in_period, offset, F32, count)
            for name in ("scale_step", "scale_zero")
        )
        return build.fmul(build.fsub(self._byte("scale", offset, count), zero), step)

    def zero(self, offset: int, count: Value | None) -> Value:
        """Return zeros in units of `zero_step`, as for `scale`."""
        return self._f.build.fsub(self._byte("zero", offset, count), self.zero_zero)

    def zero_bytes(self, offset: int, count: Value | None) -> Value:
        """Return zeros as they are stored, <64 x i8>."""
        f = self._f
        at = f.add(self._at, offset)
        return load_columns(f, f["zero"], at, vector(I8, WIDTH), 1, count)

    def _byte(self, name: str, offset: int, count: Value | None) -> Value:
        return self._f.build.uitofp(self._read(name, self._at, offset, I8, count), _FLOATS)

    def _read(
        self, name: str, index: Value, offset: int, kind: ir.Type, count: Value | None
    ) -> Value:
        f, itemsize = self._f, 1 if kind == I8 else 4
        at = f.mul(f.add(index, offset), itemsize)
        return load_columns(f, f[name], at, vector(kind, PIECE), itemsize, count)

    def _number(self, name: str) -> Value:
        f = self._f
        return f.splat(f.load(f[name], f.number(0), F32, align=4), PIECE)


class _Expand:
    def __init__(self, function: Function, form: CodeForm, output: Output) -> None:
        self._f, self._form, self._output = function, form, output

    def write(self) -> None:
        f = self._f
        whole = f.mul(f.div(f["columns"], WIDTH), WIDTH)
        rest = f.build.sub(f["columns"], whole)
        has_rest = f.build.icmp_signed(">", rest, f.number(0))

        def row(r: Value) -> None:
            codes = Codes(f, self._form, r, f["packed_rows"], f["columns"])
            scales = Axis0Scales(f, f.build.urem(r, f["bundles"]))
            position = f.build.sub(r, f["from"])
            self._starts = [
                f.mul(f.add(f.mul(f["height"], block), position), f["columns"])
                for block in range(self._form.blocks)
            ]
            f.loop(0, whole, WIDTH, lambda k: self._vector(codes, scales, k))
            f.when(has_rest, lambda: self._vector(codes, scales, whole, rest))

        f.loop(f["first"], f["last"], 1, row)

    def _vector(
        self, codes: Codes, scales: Axis0Scales, k: Value, rest: Value | None = None
    ) -> None:
        f, build = self._f, self._f.build
        scales.begin(k, WIDTH)
        rows = codes.read(k, rest)
        for first in range(0, WIDTH, PIECE):
            count = None if rest is None else build.sub(rest, f.number(first))
            zero = build.fmul(scales.zero(first, count), scales.zero_step)
            scale = scales.scale(first, count)
            for row, start in zip(rows, self._starts, strict=True):
                q = build.uitofp(f.pick(row, range(first, first + PIECE)), _FLOATS)
                weight = build.fmul(build.fsub(q, zero), scale)
                store_weights(f, weight, f.add(start, k, first), count, self._output)


def load_columns(
    function: Function, base: Value, at: Value, kind: ir.VectorType, align: int, count: Value | None
) -> Value:
    """Return a vector, of which only the first `count` lanes are read if it isn't None."""
    if count is None:
        return function.load(base, at, kind, align=align)
    return function.load_first(base, at, kind, count)
