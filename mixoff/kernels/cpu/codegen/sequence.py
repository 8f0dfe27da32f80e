"""A sequence of steps that threads do together, each step after those that it needs. Knows tasks.

A sequence is 64-bit integers: the number of parts of all steps that are done; the number of steps;
and for each step the address of its code (`parts`), the offset of its task in bytes from the start
of the sequence, and the number of parts that must be done before it begins.

All threads go through the steps in order, and take parts of a step until none is left. A thread
waits only for parts that running threads have taken, never for a thread that hasn't begun: a late
one finds all parts taken, and one thread alone does all steps.
"""

import os

from llvmlite import ir

from mixoff.kernels.cpu.codegen.ir import BYTES, I32, I64, VOID, Function, Value
from mixoff.kernels.cpu.threads import SEQUENCE, STEP

NAME = "sequence"

_SPINS = 1 << 10  # checks of what is done, before the core is yielded to other threads


def add_sequence(module: ir.Module) -> Function:
    """Write the function ``sequence``, which does what is left of a sequence's steps."""
    function = Function(module, NAME, (NAME,), (), shared=True)
    build, sequence = function.build, function[NAME]
    done = build.bitcast(sequence, I64.as_pointer())
    yields = hasattr(os, "sched_yield")  # where Python has it, C does

    def read(at: Value) -> Value:
        return function.load(sequence, at, I64, align=8)

    def step(at: Value) -> None:
        code, task, before = (read(function.add(at, 8 * n)) for n in range(len(STEP)))
        _wait(function, done, before, yields=yields)
        kind = ir.FunctionType(VOID, [BYTES, BYTES]).as_pointer()
        build.call(build.inttoptr(code, kind), [function.at(sequence, task), sequence])

    steps = read(function.number(8))
    start, size = 8 * len(SEQUENCE), 8 * len(STEP)
    function.loop(start, function.add(function.mul(steps, size), start), size, step)
    return function.end()


def _wait(function: Function, done: Value, before: Value, *, yields: bool) -> None:
    """Write a loop that waits until so many parts are done.

    The count is read with acquire order, and `parts` adds to it with release order: a thread that
    sees a part counted sees all that was written by that part.
    """
    build, spins = function.build, function.variable(I64, function.number(0))

    def is_waiting() -> Value:
        return build.icmp_signed("<", build.load_atomic(done, "acquire", 8), before)

    def spin() -> None:
        function.pause()
        count = function.add(build.load(spins), 1)
        build.store(count, spins)
        if yields:  # the thread waited for may need this core, if threads outnumber cores
            is_long = build.icmp_signed(">", count, function.number(_SPINS))
            sched_yield = function.intrinsic("sched_yield", I32, [])
            function.when(is_long, lambda: build.call(sched_yield, []))

    function.loop_while(is_waiting, spin)
