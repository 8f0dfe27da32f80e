"""RMSNorm of one token: x over the root of its mean square, as transformers has it."""

from functools import partial

from llvmlite import ir

from mixoff.kernels.cpu.codegen.floats import (
    AT_ONCE,
    PIECE,
    from_bfloat16,
    load_floats,
    store_floats,
    sum_products,
    to_bfloat16,
)
from mixoff.kernels.cpu.codegen.ir import F32, Function, Value

BUFFERS = ("x", "weight", "out")
NUMBERS = ("first", "last", "columns")


def add_normalize(module: ir.Module, epsilon: float, *, bfloat16: bool) -> Function:
    """Write the function ``normalize`` of one token: the range from ``first`` 0 to ``last`` 1.

    Buffers: x, weight and out [D], float32 or `bfloat16`: x / sqrt(mean(x * x) + epsilon), rounded
    to its type, times weight. Numbers: D, a multiple of 64.
    """
    f = Function(module, "normalize", BUFFERS, NUMBERS)
    x, weight = (partial(load_floats, f, f[name], bfloat16=bfloat16) for name in ("x", "weight"))

    def token(_: Value) -> None:
        factor = f.splat(_inverse_root(f, sum_products(f, f["columns"], square), epsilon), PIECE)

        def write(k: Value) -> None:
            for piece in range(0, AT_ONCE, PIECE):
                at = f.add(k, piece)
                value = f.build.fmul(x(at), factor)
                if bfloat16:
                    value = from_bfloat16(f, to_bfloat16(f, value))
                store_floats(f, f.build.fmul(weight(at), value), f["out"], at, bfloat16=bfloat16)

        f.loop(0, f["columns"], AT_ONCE, write)

    def square(k: Value) -> tuple[Value, Value]:
        value = x(k)
        return value, value

    f.loop(f["first"], f["last"], 1, token)
    return f.end()


def _inverse_root(f: Function, squares: Value, epsilon: float) -> Value:
    """Return 1 / sqrt(mean + epsilon) of a sum of squares."""
    mean = f.build.fdiv(squares, f.build.uitofp(f["columns"], F32))
    shifted = f.build.fadd(mean, ir.Constant(F32, epsilon))
    root = f.build.call(f.intrinsic("llvm.sqrt.f32", F32, [F32]), [shifted])
    return f.build.fdiv(ir.Constant(F32, 1.0), root)
