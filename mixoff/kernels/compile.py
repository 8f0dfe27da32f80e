"""Machine code for this CPU, made at run time by LLVM: needs no compiler. Knows targets.

Compiled functions release Python's lock while they run, and stay for as long as the process.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from llvmlite import binding, ir

from mixoff.kernels import activations, expand, multiply
from mixoff.kernels.layout import Form

ISAS = ("avx512-vnni", "avx2", "generic")

_NEEDED = {
    "avx512-vnni": ("avx512f", "avx512bw", "avx512vl", "avx512vnni"),
    "avx2": ("avx2", "fma"),
    "generic": (),
}

_ATTRIBUTES = '"stackrealign"'  # vectors that are kept on the stack don't cross cache lines

Kernel = Callable[..., None]


@cache
def usable_isas() -> tuple[str, ...]:
    """Return the instruction sets that this CPU has kernels for, the fastest first."""
    features = _features()
    return tuple(isa for isa in ISAS if all(features.get(name) for name in _NEEDED[isa]))


@cache
def _features() -> dict[str, bool]:
    return dict(binding.get_host_cpu_features())


@dataclass(frozen=True)
class _Compiled:
    engine: Any  # owns the code
    function: Kernel


@cache
def multiply_kernel(form: Form, isa: str) -> Kernel:
    """Return `mixoff.kernels.multiply.add_multiply`'s function for an instruction set."""
    return _compile(
        "multiply",
        lambda module: multiply.add_multiply(module, form, isa),
        isa,
        len(multiply.BUFFERS),
        len(multiply.NUMBERS),
    ).function


@cache
def prepare_kernel(unit: int, lane: int, isa: str) -> Kernel:
    """Return `mixoff.kernels.activations.add_prepare`'s function."""
    return _compile(
        "prepare",
        lambda module: activations.add_prepare(module, unit, lane),
        isa,
        len(activations.BUFFERS),
        len(activations.NUMBERS),
    ).function


@cache
def expand_kernel(form: Form, isa: str, *, halves: bool) -> Kernel:
    """Return `mixoff.kernels.expand.add_expand`'s function."""
    return _compile(
        "expand",
        lambda module: expand.add_expand(module, form, halves=halves),
        isa,
        len(expand.BUFFERS),
        len(expand.NUMBERS),
    ).function


_engines: list[Any] = []  # code lives as long as its engine


def _compile(
    name: str, write: Callable[[ir.Module], None], isa: str, buffers: int, numbers: int
) -> _Compiled:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    module = ir.Module(name)
    module.triple = binding.get_process_triple()
    write(module)
    parsed = binding.parse_assembly(str(module).replace(")\n{", f") {_ATTRIBUTES}\n{{"))
    parsed.verify()
    target = binding.Target.from_triple(module.triple)
    features = _features_for(isa)
    machine = target.create_target_machine(
        cpu="generic" if isa == "avx2" else binding.get_host_cpu_name(), features=features, opt=3
    )
    tuning = binding.create_pipeline_tuning_options(speed_level=3)
    builder = binding.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(parsed, builder)
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _engines.append(engine)
    kinds = [ctypes.c_void_p] * buffers + [ctypes.c_int64] * numbers
    function = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(name))
    return _Compiled(engine, function)


def _features_for(isa: str) -> str:
    if isa == "avx2":
        return "+avx2,+fma,+f16c,+bmi2"
    return str(binding.get_host_cpu_features().flatten()) + (
        ",-prefer-256-bit" if isa == "avx512-vnni" else ""
    )
