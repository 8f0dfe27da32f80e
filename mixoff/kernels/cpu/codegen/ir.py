"""A builder of LLVM IR for kernels: vectors, loops, unaligned and masked memory."""

import platform
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32, VOID = ir.HalfType(), ir.FloatType(), ir.VoidType()
BYTES = I8.as_pointer()  # every buffer; offsets are in bytes

_X86 = ("x86_64", "amd64")

Value = Any  # an `llvmlite.ir.Value`: llvmlite ships no types


def vector(element: ir.Type, lanes: int) -> ir.VectorType:
    """Return the type of a vector."""
    return ir.VectorType(element, lanes)


def fill(element: ir.Type, lanes: int, value: float) -> ir.Constant:
    """Return a constant vector of one value."""
    return ir.Constant(vector(element, lanes), [value] * lanes)


class Function:
    """A function under construction, from its first instruction to its last.

    Its arguments are read by their names, as ``function["out"]``.

    Parameters
    ----------
    module
        The module that it becomes part of.
    name
        Its name there.
    buffers, numbers
        Names of its arguments: pointers to bytes, then 64-bit integers.
    shared
        Whether other threads write into buffers while it runs. If not, LLVM may assume that
        buffers don't overlap, and that nothing else changes them.
    """

    def __init__(
        self,
        module: ir.Module,
        name: str,
        buffers: Sequence[str],
        numbers: Sequence[str],
        *,
        shared: bool = False,
    ) -> None:
        self.module, self.name = module, name
        self.buffers, self.numbers = tuple(buffers), tuple(numbers)
        kinds = [BYTES] * len(buffers) + [I64] * len(numbers)
        self.function = ir.Function(module, ir.FunctionType(VOID, kinds), name)
        entry = self.function.append_basic_block("entry")
        self._variables = ir.IRBuilder(entry)
        self._begin = self.function.append_basic_block("begin")
        self.build = ir.IRBuilder(self._begin)
        self.arguments: dict[str, Value] = {}
        for argument, label in zip(self.function.args, [*buffers, *numbers], strict=True):
            argument.name = label
            if label in buffers and not shared:
                argument.add_attribute("noalias")
            self.arguments[label] = argument

    def __getitem__(self, name: str) -> Value:
        return self.arguments[name]

    def end(self) -> "Function":
        """Write the last instruction."""
        self.build.ret_void()
        self._variables.branch(self._begin)
        return self

    # ---- numbers

    def number(self, value: int) -> ir.Constant:
        """Return a 64-bit constant."""
        return ir.Constant(I64, value)

    def add(self, *terms: Value | int) -> Value:
        """Return the sum of 64-bit numbers."""
        return self._fold(self.build.add, terms)

    def mul(self, *factors: Value | int) -> Value:
        """Return the product of 64-bit numbers."""
        return self._fold(self.build.mul, factors)

    def div(self, value: Value, by: int, *, exact: bool = False) -> Value:
        """Return a quotient of 64-bit numbers, rounded down; `exact` promises no remainder."""
        return self.build.udiv(value, self.number(by), flags=["exact"] if exact else [])

    def smaller(self, a: Value, b: Value) -> Value:
        """Return the smaller of two 64-bit numbers."""
        return self.build.select(self.build.icmp_signed("<", a, b), a, b)

    def larger(self, a: Value, b: Value) -> Value:
        """Return the larger of two 64-bit numbers."""
        return self.build.select(self.build.icmp_signed(">", a, b), a, b)

    def _fold(self, operation: Callable[..., Value], values: Sequence[Value | int]) -> Value:
        total, *rest = (v if isinstance(v, ir.Value) else self.number(v) for v in values)
        for value in rest:
            total = operation(total, value)
        return total

    # ---- control

    def variable(self, kind: ir.Type, value: Value | None = None) -> Value:
        """Return a pointer to memory on the stack, which LLVM replaces by a register.

        It is allocated in the entry block, where LLVM looks for what registers may replace; code
        inside a loop would allocate again in each iteration.
        """
        pointer = self._variables.alloca(kind)
        if value is not None:
            self.build.store(value, pointer)
        return pointer

    def loop(
        self,
        start: Value | int,
        stop: Value | int,
        step: Value | int,
        body: Callable[[Value], None],
    ) -> None:
        """Write a loop; `body` takes the counter, and writes one iteration."""
        low, high = (v if isinstance(v, ir.Value) else self.number(v) for v in (start, stop))
        counter = self.variable(I64, low)

        def iteration() -> None:
            body(self.build.load(counter))
            self.build.store(self.add(self.build.load(counter), step), counter)

        def is_left() -> Value:
            return self.build.icmp_signed("<", self.build.load(counter), high)

        self.loop_while(is_left, iteration)

    def loop_while(self, condition: Callable[[], Value], body: Callable[[], None]) -> None:
        """Write a loop that continues while a condition holds, which each iteration evaluates."""
        blocks = [self.function.append_basic_block(name) for name in ("test", "body", "after")]
        test, inside, after = blocks
        self.build.branch(test)
        self.build.position_at_end(test)
        self.build.cbranch(condition(), inside, after)
        self.build.position_at_end(inside)
        body()
        self.build.branch(test)
        self.build.position_at_end(after)

    def when(self, condition: Value, body: Callable[[], None]) -> None:
        """Write code that runs only if a condition holds."""
        with self.build.if_then(condition):
            body()

    # ---- memory

    def load(self, base: Value, offset: Value, kind: ir.Type, align: int = 1) -> Value:
        """Return the value that lies some bytes behind a pointer."""
        pointer = self.build.bitcast(self.build.gep(base, [offset]), kind.as_pointer())
        value = self.build.load(pointer)
        value.align = align
        return value

    def load_first(self, base: Value, offset: Value, kind: ir.VectorType, count: Value) -> Value:
        """Return a vector of which only the first `count` lanes are read; the others are 0.

        Memory of the others isn't touched: it may lie behind the end of a buffer.
        """
        pointer = self.build.bitcast(self.build.gep(base, [offset]), kind.as_pointer())
        name = f"llvm.masked.load.v{kind.count}{_letters(kind.element)}.p0"
        mask = self.first_lanes(kind.count, count)
        zero = ir.Constant(kind, None)
        lanes = vector(I1, kind.count)
        load = self.intrinsic(name, kind, [kind.as_pointer(), I32, lanes, kind])
        return self.build.call(load, [pointer, ir.Constant(I32, 1), mask, zero])

    def store(self, value: Value, base: Value, offset: Value, align: int = 1) -> None:
        """Write a value some bytes behind a pointer."""
        pointer = self.build.bitcast(self.build.gep(base, [offset]), value.type.as_pointer())
        self.build.store(value, pointer).align = align

    def store_first(self, value: Value, base: Value, offset: Value, count: Value) -> None:
        """Write only the first `count` lanes of a vector."""
        kind = value.type
        pointer = self.build.bitcast(self.build.gep(base, [offset]), kind.as_pointer())
        name = f"llvm.masked.store.v{kind.count}{_letters(kind.element)}.p0"
        lanes = vector(I1, kind.count)
        store = self.intrinsic(name, VOID, [kind, kind.as_pointer(), I32, lanes])
        mask = self.first_lanes(kind.count, count)
        self.build.call(store, [value, pointer, ir.Constant(I32, 1), mask])

    def first_lanes(self, lanes: int, count: Value) -> Value:
        """Return a mask of the first `count` lanes."""
        numbers = ir.Constant(vector(I64, lanes), list(range(lanes)))
        return self.build.icmp_signed("<", numbers, self.splat(count, lanes))

    def at(self, base: Value, offset: Value) -> Value:
        """Return the pointer some bytes behind a pointer."""
        return self.build.gep(base, [offset])

    def prefetch(self, base: Value, offset: Value, cache: int) -> None:
        """Prefetch a cache line into a cache (`codes.Prefetch`).

        It may lie behind the end of a buffer: a prefetch of memory that isn't mapped does nothing.
        """
        fetch = self.intrinsic("llvm.prefetch.p0", VOID, [BYTES, I32, I32, I32])
        locality = {0: 0, 1: 3, 2: 2}[cache]
        hints = [ir.Constant(I32, n) for n in (0, locality, 1)]  # to read; data
        self.build.call(fetch, [self.build.gep(base, [offset]), *hints])

    def pause(self) -> None:
        """Give the processor a hint that a loop waits for another thread."""
        if platform.machine().lower() in _X86:
            self.build.call(self.intrinsic("llvm.x86.sse2.pause", VOID, []), [])

    # ---- vectors

    def splat(self, value: Value, lanes: int) -> Value:
        """Return a vector of one value."""
        kind = vector(value.type, lanes)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.build.insert_element(undefined, value, ir.Constant(I32, 0))
        return self.build.shuffle_vector(first, undefined, fill(I32, lanes, 0))

    def pick(self, value: Value, lanes: Sequence[int]) -> Value:
        """Return the vector of some lanes of a vector, in their order."""
        if [*lanes] == [*range(value.type.count)]:
            return value
        undefined = ir.Constant(value.type, ir.Undefined)
        mask = ir.Constant(vector(I32, len(lanes)), [*lanes])
        return self.build.shuffle_vector(value, undefined, mask)

    def join(self, low: Value, high: Value) -> Value:
        """Return the lanes of two vectors as one vector."""
        lanes = [*range(2 * low.type.count)]
        return self.build.shuffle_vector(low, high, ir.Constant(vector(I32, len(lanes)), lanes))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """Return a * b + c for float32 vectors, rounded once."""
        kind = a.type
        name = f"llvm.fma.v{kind.count}f32"
        return self.build.call(self.intrinsic(name, kind, [kind] * 3), [a, b, c])

    def sum_lanes(self, value: Value) -> Value:
        """Return the sum of a float32 vector's lanes, in any order."""
        kind = value.type
        name = f"llvm.vector.reduce.fadd.v{kind.count}f32"
        reduce = self.intrinsic(name, F32, [F32, kind])
        return self.build.call(reduce, [ir.Constant(F32, -0.0), value], fastmath=["reassoc"])

    def intrinsic(self, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> Value:
        """Return a function of LLVM, or of the C library."""
        if name not in self.module.globals:
            ir.Function(self.module, ir.FunctionType(result, [*arguments]), name)
        return self.module.globals[name]


def _letters(element: ir.Type) -> str:
    if isinstance(element, ir.IntType):
        return f"i{element.width}"
    return "f16" if element == F16 else "f32"
