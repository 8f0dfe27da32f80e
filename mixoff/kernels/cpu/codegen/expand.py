"""W = (W_q - zero) * scale in float32 or bfloat16: the kernel for many tokens."""

from typing import Literal

from llvmlite import ir

from mixoff.kernels.cpu.codegen.codes import Codes, Scales, existing_row
from mixoff.kernels.cpu.codegen.dot import WIDTH
from mixoff.kernels.cpu.codegen.floats import FLOATS, PIECE, to_bfloat16
from mixoff.kernels.cpu.codegen.ir import Function, Value
from mixoff.kernels.layout import Form

BUFFERS = ("codes", "scale", "zero", "pairs", "out")
NUMBERS = ("first", "last", "packed_rows", "rows", "columns", "from", "height")

Output = Literal["float32", "bfloat16", "avx512-bf16"]  # the last by an instruction of its own


def add_expand(module: ir.Module, form: Form, output: Output) -> Function:
    """Write the function ``expand``: out[block, r - from, k], [blocks, height, K], of packed rows.

    Buffers: a `Packed` matrix, and out, in the type of `output`. Numbers: the range of packed rows,
    R, N, K, the first packed row of out, and the number of its packed rows.
    """
    function = Function(module, "expand", BUFFERS, NUMBERS)
    _Expand(function, form, output).write()
    return function.end()


class _Expand:
    def __init__(self, function: Function, form: Form, output: Output) -> None:
        self._f, self._form, self._output = function, form, output

    def write(self) -> None:
        f = self._f
        groups = f.div(f["columns"], self._form.group_size)
        whole = f.mul(f.div(f["columns"], WIDTH), WIDTH)
        rest = f.build.sub(f["columns"], whole)

        def row(r: Value) -> None:
            rows = [f.add(r, f.mul(f["packed_rows"], b)) for b in range(self._form.blocks)]
            codes = Codes(f, self._form, r, f["packed_rows"], f["columns"])
            scales = [Scales(f, self._form, existing_row(f, n), groups, fused=False) for n in rows]
            position = f.build.sub(r, f["from"])
            self._starts = [
                f.mul(f.add(f.mul(f["height"], b), position), f["columns"])
                for b in range(self._form.blocks)
            ]

            def span(k: Value) -> None:
                for row_scales in scales:
                    row_scales.begin(k)
                end = f.smaller(f.add(k, self._form.span), whole)
                f.loop(k, end, WIDTH, lambda k: self._vector(codes, scales, k))

            def last() -> None:
                for row_scales in scales:
                    row_scales.begin(whole)
                self._vector(codes, scales, whole, rest)

            f.loop(0, whole, self._form.span, span)
            if self._form.unit < WIDTH:
                f.when(f.build.icmp_signed(">", rest, f.number(0)), last)

        f.loop(f["first"], f["last"], 1, row)

    def _vector(
        self, codes: Codes, scales: list[Scales], k: Value, rest: Value | None = None
    ) -> None:
        f, unit, size = self._f, self._form.unit, self._form.group_size
        groups = WIDTH // unit
        present = None if rest is None else f.div(rest, size)
        rows = codes.read(k, rest)
        for row, row_scales, start in zip(rows, scales, self._starts, strict=True):
            scale, zero = row_scales.read(k, groups, present)
            for first in range(0, WIDTH, PIECE):
                lanes = [(first + lane) // unit for lane in range(PIECE)]
                q = f.pick(row, range(first, first + PIECE))
                q = f.build.uitofp(q, FLOATS)
                weight = f.build.fmul(f.build.fsub(q, f.pick(zero, lanes)), f.pick(scale, lanes))
                left = None if rest is None else f.build.sub(rest, f.number(first))
                store_weights(f, weight, f.add(start, k, first), left, self._output)


def store_weights(
    function: Function, weight: Value, index: Value, count: Value | None, output: Output
) -> None:
    """Write <16 x float> to out, in its type; only the first `count` if it isn't None."""
    value, itemsize = weight, 4
    if output != "float32":
        value, itemsize = to_bfloat16(function, weight, native=output == "avx512-bf16"), 2
    at = function.mul(index, itemsize)
    if count is None:
        function.store(value, function["out"], at, align=itemsize)
    else:
        function.store_first(value, function["out"], at, count)
