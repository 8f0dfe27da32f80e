"""One token divided by the root of its mean square, as transformers' RMSNorm. Knows x alone."""

from llvmlite import ir

from mixoff.kernels.floats import FLOATS, PIECE, from_bfloat16, to_bfloat16
from mixoff.kernels.ir import F32, I16, Function, Value, fill, vector

BUFFERS = ("x", "weight", "out")
NUMBERS = ("first", "last", "columns")

_AT_ONCE = 4  # vectors, whose sums wait for nobody else's


def add_normalize(module: ir.Module, epsilon: float, *, halves: bool) -> Function:
    """Write the function ``normalize``, which goes through one token: ``first`` 0, ``last`` 1.

    Buffers: x, weight and out [D], float32, or bfloat16 if `halves`: x / sqrt(mean(x * x) +
    epsilon), rounded to its type, times weight. Numbers: D, a multiple of 64.
    """
    function = Function(module, "normalize", BUFFERS, NUMBERS)
    _Normalize(function, epsilon, halves).write()
    return function.end()


class _Normalize:
    def __init__(self, function: Function, epsilon: float, halves: bool) -> None:
        self._f, self._epsilon, self._halves = function, epsilon, halves

    def write(self) -> None:
        f = self._f

        def token(_: Value) -> None:
            factor = self._factor()

            def write(k: Value) -> None:
                for piece in range(_AT_ONCE):
                    at = f.add(k, piece * PIECE)
                    value = self._rounded(f.build.fmul(self._loaded("x", at), factor))
                    self._store(f.build.fmul(self._loaded("weight", at), value), at)

            f.loop(0, f["columns"], PIECE * _AT_ONCE, write)

        f.loop(f["first"], f["last"], 1, token)

    def _factor(self) -> Value:
        """Return 1 / sqrt(mean(x * x) + epsilon) in all lanes."""
        f, build = self._f, self._f.build
        sums = [f.variable(FLOATS) for _ in range(_AT_ONCE)]
        for place in sums:
            build.store(fill(F32, PIECE, 0.0), place)

        def square(k: Value) -> None:
            for number, place in enumerate(sums):
                x = self._loaded("x", f.add(k, number * PIECE))
                build.store(f.fma(x, x, build.load(place)), place)

        f.loop(0, f["columns"], PIECE * _AT_ONCE, square)
        first, *others = (build.load(place) for place in sums)
        for other in others:
            first = build.fadd(first, other)
        mean = build.fdiv(f.sum_lanes(first), build.uitofp(f["columns"], F32))
        shifted = build.fadd(mean, ir.Constant(F32, self._epsilon))
        root = build.call(f.intrinsic("llvm.sqrt.f32", F32, [F32]), [shifted])
        return f.splat(build.fdiv(ir.Constant(F32, 1.0), root), PIECE)

    def _loaded(self, name: str, index: Value) -> Value:
        f = self._f
        if not self._halves:
            return f.load(f[name], f.mul(index, 4), FLOATS, align=4)
        return from_bfloat16(f, f.load(f[name], f.mul(index, 2), vector(I16, PIECE), align=2))

    def _rounded(self, value: Value) -> Value:
        """Return a number as x's type has it."""
        return from_bfloat16(self._f, to_bfloat16(self._f, value)) if self._halves else value

    def _store(self, value: Value, index: Value) -> None:
        f, itemsize = self._f, 2 if self._halves else 4
        stored = to_bfloat16(f, value) if self._halves else value
        f.store(stored, f["out"], f.mul(index, itemsize), align=itemsize)
