"""y = x W^T straight from packed weights: the kernel for few tokens. Knows no memory management.

Of W = (W_q - zero) * scale, a group adds scale * (sum of W_q x - zero * sum of x) to y. Products of
codes and activations are exact integers (`dot`, `activations`).
"""

from collections.abc import Sequence
from functools import partial

from llvmlite import ir

from mixoff.kernels.codes import Codes, Scales, existing_row
from mixoff.kernels.dot import LANES, WIDTH, dots, largest_code
from mixoff.kernels.ir import F32, I8, I32, Function, Value, fill, vector
from mixoff.kernels.layout import Form

BUFFERS = ("codes", "scale", "zero", "pairs", "high", "low", "steps", "sums", "out")
NUMBERS = ("first", "last", "packed_rows", "rows", "columns", "tokens", "padded", "stride")


def add_multiply(module: ir.Module, form: Form, isa: str) -> Function:
    """Write the function ``multiply``: out[t, n] for the rows of some packed rows.

    Buffers: a `Packed` matrix, activations (`activations`), and float32 out [T, stride]. Numbers:
    the packed rows to go through, R, N, K, T, K as activations pad it, and out's stride.
    """
    function = Function(module, "multiply", BUFFERS, NUMBERS)
    _Multiply(function, form, isa).write()
    return function.end()


class _Multiply:
    def __init__(self, function: Function, form: Form, isa: str) -> None:
        self._f, self._form, self._isa = function, form, isa
        if isa == "avx2" and form.nbits == 8:
            self._isa = "avx2-bytes"
        self._sums = [function.variable(vector(F32, LANES)) for _ in range(form.blocks)]

    def write(self) -> None:
        f, form, isa = self._f, self._form, self._isa
        self._groups = f.div(f["columns"], form.group_size)
        largest = largest_code(isa, form.nbits, form.lane // 4)

        def row(r: Value) -> None:
            rows = [f.add(r, f.mul(f["packed_rows"], b)) for b in range(form.blocks)]
            sizes = (f["packed_rows"], f["columns"])
            self._codes = Codes(f, form, r, *sizes, largest=largest)
            places = [existing_row(f, n) for n in rows]
            self._scales = [Scales(f, form, n, self._groups, fused=True) for n in places]
            f.loop(0, f["tokens"], 1, lambda token: self._token(token, rows))

        f.loop(f["first"], f["last"], 1, row)

    def _token(self, token: Value, rows: list[Value]) -> None:
        f, unit = self._f, self._form.unit
        self._start = f.mul(token, f["padded"])  # bytes of a plane of activations
        for place in self._sums:
            f.build.store(fill(F32, LANES, 0.0), place)
        done: Value | int = 0
        for wide in sorted({LANES * unit, LANES * self._form.lane, WIDTH}, reverse=True):
            whole = f.mul(f.div(f["columns"], wide), wide)
            f.loop(done, whole, wide, partial(self._step, units=wide // unit))
            done = whole
        rest = f.build.sub(f["columns"], done)
        if unit < WIDTH:  # groups of 64 and more leave no rest
            some = f.build.icmp_signed(">", rest, f.number(0))
            f.when(some, lambda: self._step(done, WIDTH // unit, rest))
        for n, place in zip(rows, self._sums, strict=True):
            self._store(f.sum_lanes(f.build.load(place)), token, n)

    def _store(self, y: Value, token: Value, n: Value) -> None:
        """Write a row's result, if it isn't one of those that only fill up a packed row."""
        f = self._f
        at = f.mul(f.add(f.mul(token, f["stride"]), n), 4)
        exists = f.build.icmp_signed("<", n, f["rows"])
        f.when(exists, lambda: f.store(y, f["out"], at, align=4))

    def _step(self, k: Value, units: int, rest: Value | None = None) -> None:
        """Add what some columns from k on contribute; of a last, shorter vector `rest` columns."""
        f, unit, wide = self._f, self._form.unit, LANES * self._form.lane
        factors = self._factors(k, units, rest)
        if units * unit < wide:
            self._vector(k, factors, rest)
            return
        for first in range(0, units * unit, wide):
            lanes = [(first + lane * self._form.lane) // unit for lane in range(LANES)]
            self._sorted(f.add(k, first), [f.pick(factor, lanes) for factor in factors])

    def _factors(self, k: Value, units: int, rest: Value | None) -> list[Value]:
        """Add what zeros of some units contribute; return what products are multiplied by."""
        f, unit, size = self._f, self._form.unit, self._form.group_size
        groups = max(1, units * unit // size)
        at = f.add(self._start, k)
        steps = self._floats("steps", f.div(at, WIDTH), units * unit // WIDTH)
        steps = f.pick(steps, [n * unit // WIDTH for n in range(units)])
        sums = self._floats("sums", f.div(at, unit), units)
        present = None if rest is None else f.div(rest, size)
        factors = []
        every = zip(self._scales, self._sums, self._codes.factors, strict=True)
        for scales, place, factor in every:
            scale, zero = scales.read(f.div(k, size), groups, present)
            lanes = [n * unit // size for n in range(units)]
            scale, zero = f.pick(scale, lanes), f.pick(zero, lanes)
            offset = f.build.fneg(f.build.fmul(scale, zero))
            total = f.fma(self._widened(offset), self._widened(sums), f.build.load(place))
            f.build.store(total, place)
            fraction = fill(F32, units, 1 / factor)  # exact
            factors.append(f.build.fmul(scale, f.build.fmul(steps, fraction)))
        return factors

    def _sorted(self, k: Value, factors: list[Value]) -> None:
        """Add the products of 16 lanes: activations lie in this order already."""
        f, vectors = self._f, self._form.lane // 4
        parts = [self._codes.planes(f.add(k, n * WIDTH)) for n in range(vectors)]
        planes = [self._by_lane(plane) for plane in zip(*parts, strict=True)]
        codes = [self._codes.fields(own) for own in zip(*planes, strict=True)]  # [vectors][rows]
        self._add(factors, list(zip(*codes, strict=True)), k)

    def _add(self, factors: list[Value], codes: list[Sequence[Value]], k: Value) -> None:
        """Add each row's factors times the products of its codes."""
        f = self._f
        products = dots(f, self._isa, codes, *self._activations(k, len(codes[0])))
        for product, factor, place in zip(products, factors, self._sums, strict=True):
            product = f.build.sitofp(product, vector(F32, LANES))
            f.build.store(f.fma(factor, product, f.build.load(place)), place)

    def _by_lane(self, vectors: Sequence[Value]) -> list[Value]:
        """Return <64 x i8> whose dwords m of all lanes stand side by side, for each m."""
        f = self._f
        runs = [[f.build.bitcast(v, vector(I32, LANES))] for v in vectors]
        width = len(runs)  # dwords of a lane that stand side by side
        while width > 1:
            halves = (0, width // 2)
            runs = [
                [
                    self._halves(a, b, width, side)
                    for a, b in zip(*pair, strict=True)
                    for side in halves
                ]
                for pair in zip(runs[::2], runs[1::2], strict=True)
            ]
            width //= 2
        return [f.build.bitcast(v, vector(I8, WIDTH)) for v in runs[0]]

    def _halves(self, a: Value, b: Value, width: int, side: int) -> Value:
        """Return the first or second half of each lane's dwords of two vectors."""
        units = range(0, LANES, width)
        lanes = [unit + side + n for unit in units for n in range(width // 2)]
        lanes += [LANES + lane for lane in lanes]
        return self._f.build.shuffle_vector(a, b, ir.Constant(vector(I32, LANES), lanes))

    def _vector(self, k: Value, factors: list[Value], rest: Value | None) -> None:
        """Add the products of one vector, whose codes lie as they are packed."""
        lanes = [4 * lane // self._form.unit for lane in range(LANES)]
        codes = self._codes.read(k, rest)
        self._add([self._f.pick(factor, lanes) for factor in factors], [[own] for own in codes], k)

    def _activations(self, k: Value, vectors: int) -> tuple[list[Value], list[Value]]:
        f, bytes_ = self._f, vector(I8, WIDTH)
        at = [f.add(self._start, k, n * WIDTH) for n in range(vectors)]
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
