"""Machine code for this CPU, made at run time by LLVM: needs no compiler. Knows targets.

Compiled functions release Python's lock while they run, and stay for as long as the process.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import binding, ir

from mixoff.kernels.cpu.codegen import (
    activations,
    attend,
    axis0_expand,
    axis0_multiply,
    codes,
    expand,
    multiply,
    normalize,
    rotate,
    route,
    sequence,
)
from mixoff.kernels.cpu.codegen.ir import Function
from mixoff.kernels.cpu.codegen.parts import NAME as PARTS
from mixoff.kernels.cpu.codegen.parts import add_parts
from mixoff.kernels.cpu.threads import Code
from mixoff.kernels.layout import CodeForm, Form

ISAS = ("avx512-vnni", "avx-vnni", "avx2", "generic")

_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")
_NEEDED = {  # any of these sets of features
    "avx512-vnni": (_AVX512,),
    # The same instructions, in their own encoding or in AVX-512's.
    "avx-vnni": ((*_AVX2, "avxvnni"), (*_AVX2, "avx512vl", "avx512vnni")),
    "avx2": (_AVX2,),
    "generic": ((),),
}

_ALONE = ("avx-vnni", "avx2")  # compiled with nothing else that this CPU may have
_ATTRIBUTES = '"stackrealign"'  # vectors that are kept on the stack don't cross cache lines

_Write = Callable[[ir.Module], Function]


@cache
def usable_isas() -> tuple[str, ...]:
    """Return the instruction sets that this CPU has kernels for, the fastest first."""
    return tuple(isa for isa in ISAS if _needed(isa) is not None)


def _needed(isa: str) -> tuple[str, ...] | None:
    """Return the features that an instruction set takes of this CPU; None if it lacks some."""
    features = _features()
    every = (names for names in _NEEDED[isa] if all(features.get(name) for name in names))
    return next(every, None)


@cache
def has_bfloat16() -> bool:
    """Return whether this CPU has instructions for products of bfloat16."""
    return any(_features().get(name) for name in ("avx512bf16", "amx-bf16", "bf16"))


def has_narrow_vectors() -> bool:
    """Return whether this CPU takes vectors of 512 bits in two halves."""
    return _cpu() == "znver4"


def _output(isa: str, halves: bool) -> expand.Output:
    """Return what kernels write that dequantize."""
    native = isa == "avx512-vnni" and _features().get("avx512bf16")
    return ("avx512-bf16" if native else "bfloat16") if halves else "float32"


def _reads_near() -> bool:
    """Return whether this CPU was found to read faster if it asks into its first cache."""
    return _cpu() == "znver5"


@cache
def _cpu() -> str:
    """Return what LLVM calls this CPU."""
    return str(binding.get_host_cpu_name())


@cache
def _features() -> dict[str, bool]:
    return dict(binding.get_host_cpu_features())


@cache
def multiply_worker(form: Form, isa: str, *, together: bool) -> int:
    """Return what does parts of `mixoff.kernels.cpu.codegen.multiply.add_multiply`'s work."""
    ahead = codes.NEAR if _reads_near() and not together else codes.FAR
    return _worker(
        lambda module: multiply.add_multiply(module, form, isa, together=together, ahead=ahead),
        isa,
    )


@cache
def expand_worker(form: Form, isa: str, *, halves: bool) -> int:
    """Return what does parts of `mixoff.kernels.cpu.codegen.expand.add_expand`'s work."""
    return _worker(lambda module: expand.add_expand(module, form, _output(isa, halves)), isa)


@cache
def axis0_multiply_worker(form: CodeForm, isa: str) -> int:
    """Return what does parts of `mixoff.kernels.cpu.codegen.axis0_multiply.add_multiply`'s work."""
    ahead = axis0_multiply.NEAR if _reads_near() else axis0_multiply.FAR
    return _worker(lambda module: axis0_multiply.add_multiply(module, form, isa, ahead), isa)


@cache
def axis0_expand_worker(form: CodeForm, isa: str, *, halves: bool) -> int:
    """Return what does parts of `mixoff.kernels.cpu.codegen.axis0_expand.add_expand`'s work."""
    return _worker(lambda module: axis0_expand.add_expand(module, form, _output(isa, halves)), isa)


@cache
def attend_worker(heads: int, size: int, isa: str, *, halves: bool) -> int:
    """Return what does parts of `mixoff.kernels.cpu.codegen.attend.add_attend`'s work."""
    return _worker(lambda m: attend.add_attend(m, heads, size, isa, halves=halves), isa)


@cache
def prepare_worker(unit: int, lane: int, source: activations.Source, isa: str) -> int:
    """Return what does parts of `mixoff.kernels.cpu.codegen.activations.add_prepare`'s work."""
    return _worker(lambda module: activations.add_prepare(module, unit, lane, source), isa)


@cache
def rotate_worker(size: int, scaling: float, isa: str, *, halves: bool) -> int:
    """Return what does parts of `mixoff.kernels.cpu.codegen.rotate.add_rotate`'s work."""
    return _worker(lambda m: rotate.add_rotate(m, size, scaling, halves=halves), isa)


@cache
def route_worker(isa: str, *, halves: bool) -> int:
    """Return what does parts of `mixoff.kernels.cpu.codegen.route.add_route`'s work."""
    return _worker(lambda module: route.add_route(module, halves=halves), isa)


@cache
def normalize_worker(epsilon: float, isa: str, *, halves: bool) -> int:
    """Return what does parts of `mixoff.kernels.cpu.codegen.normalize.add_normalize`'s work."""
    return _worker(lambda m: normalize.add_normalize(m, epsilon, halves=halves), isa)


@cache
def through_steps() -> Code:
    """Return what goes through sequences of steps."""
    module = ir.Module(sequence.NAME)
    sequence.add_sequence(module)
    address = _compile(module, "generic")
    return Code(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address), address)


def _worker(write: _Write, isa: str) -> int:
    module = ir.Module(PARTS)
    add_parts(module, write(module))
    return _compile(module, isa)


_engines: list[Any] = []  # code lives as long as its engine


def _compile(module: ir.Module, isa: str) -> int:
    """Return the address of the function that has a module's name."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    module.triple = binding.get_process_triple()
    parsed = binding.parse_assembly(str(module).replace(")\n{", f") {_ATTRIBUTES}\n{{"))
    parsed.verify()
    target = binding.Target.from_triple(module.triple)
    machine = target.create_target_machine(
        cpu="generic" if isa in _ALONE else _cpu(),
        features=_features_for(isa),
        opt=3,
    )
    tuning = binding.create_pipeline_tuning_options(speed_level=3)
    builder = binding.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(parsed, builder)
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(module.name))


def _features_for(isa: str) -> str:
    if isa in _ALONE:
        return ",".join(f"+{name}" for name in _needed(isa) or ())
    return str(binding.get_host_cpu_features().flatten()) + (
        ",-prefer-256-bit" if isa == "avx512-vnni" else ""
    )
