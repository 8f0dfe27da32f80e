"""A kernel's work in parts, which any number of threads take one after the other.

A task is 64-bit integers: how many parts are taken; how many there are; where the range begins, and
how long it is; then the kernel's buffers, and its numbers but the first two, which say what to do.
"""

from llvmlite import ir

from mixoff.kernels.ir import I64, Function, Value
from mixoff.kernels.threads import HEADER

NAME = "parts"


def add_parts(module: ir.Module, kernel: Function) -> Function:
    """Write the function ``parts``, which does parts of a task until none is left.

    Its one buffer is the task. Nothing else can call the kernel any more.
    """
    kernel.function.linkage = "internal"
    function = Function(module, NAME, ("task",), ())
    build = function.build

    def field(number: int) -> Value:
        return function.load(function["task"], function.number(8 * number), I64, align=8)

    parts, first, count = (field(number) for number in (1, 2, 3))
    given = [field(len(HEADER) + n) for n in range(len(kernel.buffers) + len(kernel.numbers) - 2)]
    pointers = kernel.function.function_type.args[: len(kernel.buffers)]
    buffers = [build.inttoptr(v, kind) for v, kind in zip(given, pointers, strict=False)]
    numbers = given[len(buffers) :]
    taken = build.bitcast(function["task"], I64.as_pointer())

    def limit(part: Value) -> Value:
        return function.add(first, build.udiv(function.mul(count, part), parts))

    def take(_: Value) -> None:
        part = build.atomic_rmw("add", taken, function.number(1), "monotonic")

        def work() -> None:
            limits = (limit(part), limit(function.add(part, 1)))
            build.call(kernel.function, [*buffers, *limits, *numbers])

        function.when(build.icmp_signed("<", part, parts), work)

    function.loop(0, parts, 1, take)
    return function.end()
