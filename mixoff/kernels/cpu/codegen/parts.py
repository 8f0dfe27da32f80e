"""A kernel's work in parts, which any number of threads take one after the other.

A task is 64-bit integers: the number of parts that are taken; the number of parts; where the range
begins, and its length; then the kernel's buffers, and its numbers but the first two, which are the
limits of a part. Parts that are done are counted outside of it, for several tasks together.
"""

from llvmlite import ir

from mixoff.kernels.cpu.codegen.ir import I64, Function, Value
from mixoff.kernels.cpu.threads import TASK

NAME = "parts"


def add_parts(module: ir.Module, kernel: Function) -> Function:
    """Write the function ``parts``, which does parts of a task until none is left.

    Its buffers are the task, and a 64-bit count of parts that are done. Nothing else can call the
    kernel then, so that LLVM may inline it.
    """
    kernel.function.linkage = "internal"
    function = Function(module, NAME, ("task", "done"), (), shared=True)
    build = function.build

    def field(number: int) -> Value:
        return function.load(function["task"], function.number(8 * number), I64, align=8)

    parts, first, count = (field(number) for number in (1, 2, 3))
    arguments = [field(len(TASK) + n) for n in range(len(kernel.buffers) + len(kernel.numbers) - 2)]
    pointers = kernel.function.function_type.args[: len(kernel.buffers)]
    buffers = [build.inttoptr(v, kind) for v, kind in zip(arguments, pointers, strict=False)]
    numbers = arguments[len(buffers) :]
    taken, done = (build.bitcast(function[n], I64.as_pointer()) for n in ("task", "done"))

    def limit(part: Value) -> Value:
        return function.add(first, build.udiv(function.mul(count, part), parts))

    part = function.variable(I64)

    def is_left() -> Value:
        # Only that each part is taken once matters here: `sequence` has waited for its input.
        taking = build.atomic_rmw("add", taken, function.number(1), "monotonic")
        build.store(taking, part)
        return build.icmp_signed("<", taking, parts)

    def do() -> None:
        number = build.load(part)
        limits = (limit(number), limit(function.add(number, 1)))
        build.call(kernel.function, [*buffers, *limits, *numbers])
        build.atomic_rmw("add", done, function.number(1), "release")  # after the part's writes

    function.loop_while(is_left, do)
    return function.end()
