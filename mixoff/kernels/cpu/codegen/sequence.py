"""Steps that threads go through together, each once what it needs is done. Knows tasks alone.

A sequence is 64-bit integers: how many parts of all steps are done; how many steps there are; then
of each step where its code begins (`parts`), where its task does, counted in bytes from the
sequence, and how many parts have to be done before. Whoever comes late finds work taken, and no
step waits for a certain thread: one alone goes through all of them.
"""

import os

from llvmlite import ir

from mixoff.kernels.cpu.codegen.ir import BYTES, I32, I64, VOID, Function, Value
from mixoff.kernels.cpu.threads import SEQUENCE, STEP

NAME = "sequence"

_PATIENCE = 1 << 10  # looks at what is done, until other threads are let run


def add_sequence(module: ir.Module) -> Function:
    """Write the function ``sequence``, which does what is left of a sequence's steps."""
    function = Function(module, NAME, (NAME,), (), shared=True)
    build, sequence = function.build, function[NAME]
    done = build.bitcast(sequence, I64.as_pointer())
    yields = hasattr(os, "sched_yield")  # C has it where Python does

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
    """Write what waits until so many parts are done."""
    build, looks = function.build, function.variable(I64, function.number(0))

    def is_waiting() -> Value:
        return build.icmp_signed("<", build.load_atomic(done, "acquire", 8), before)

    def look_again() -> None:
        function.pause()
        seen = function.add(build.load(looks), 1)
        build.store(seen, looks)
        if yields:
            often = build.icmp_signed(">", seen, function.number(_PATIENCE))
            run_others = function.intrinsic("sched_yield", I32, [])
            function.when(often, lambda: build.call(run_others, []))

    function.loop_while(is_waiting, look_again)
