"""Machine code for this CPU, made by LLVM at run time without a compiler. Knows targets.

Compiled functions run without Python's lock, and exist for as long as the process.
"""

import ctypes
from collections.abc import Callable
from functools import cache

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
_NEEDED = {  # any one of these sets of features
    "avx512-vnni": (_AVX512,),
    # The same instructions, in their own encoding or in AVX-512's.
    "avx-vnni": ((*_AVX2, "avxvnni"), (*_AVX2, "avx512vl", "avx512vnni")),
    "avx2": (_AVX2,),
    "generic": ((),),
}

_ALONE = ("avx-vnni", "avx2")  # compiled without any other feature that this CPU may have
# The stack is aligned for vectors: those that registers have no room for are spilled to it, and
# would cross cache lines otherwise.
_ATTRIBUTES = '"stackrealign"'

_Write = Callable[[ir.Module], Function]


@cache
def usable_isas() -> tuple[str, ...]:
    """Return the instruction sets of kernels that this CPU can run, the fastest first."""
    return tuple(isa for isa in ISAS if _needed(isa) is not None)


def _needed(isa: str) -> tuple[str, ...] | None:
    """Return the features of this CPU that an instruction set uses; None if it lacks some."""
    features = _features()
    complete = (names for names in _NEEDED[isa] if all(features.get(name) for name in names))
    return next(complete, None)


@cache
def has_bfloat16() -> bool:
    """Return whether this CPU has instructions for products of bfloat16."""
    return any(_features().get(name) for name in ("avx512bf16", "amx-bf16", "bf16"))


def has_narrow_vectors() -> bool:
    """Return whether this CPU computes vectors of 512 bits in two halves."""
    return _cpu() == "znver4"


def _output(isa: str, bfloat16: bool) -> expand.Output:
    """Return the output of kernels that dequantize."""
    native = isa == "avx512-vnni" and _features().get("avx512bf16")
    return ("avx512-bf16" if native else "bfloat16") if bfloat16 else "float32"


def _prefetches_near() -> bool:
    """Return whether this CPU reads faster with prefetches into its first cache, as measured."""
    return _cpu() == "znver5"


@cache
def _cpu() -> str:
    """Return LLVM's name of this CPU."""
    return str(binding.get_host_cpu_name())


@cache
def _features() -> dict[str, bool]:
    return dict(binding.get_host_cpu_features())


# Addresses of code that does parts of a kernel's work (`codegen.parts`), compiled once for a form.


@cache
def multiply_worker(form: Form, isa: str, *, together: bool) -> int:
    """Return the address of code for `codegen.multiply.add_multiply`."""
    prefetch = codes.NEAR if _prefetches_near() and not together else codes.FAR
    return _worker(
        lambda m: multiply.add_multiply(m, form, isa, together=together, prefetch=prefetch), isa
    )


@cache
def expand_worker(form: Form, isa: str, *, bfloat16: bool) -> int:
    """Return the address of code for `codegen.expand.add_expand`."""
    return _worker(lambda m: expand.add_expand(m, form, _output(isa, bfloat16)), isa)


@cache
def axis0_multiply_worker(form: CodeForm, isa: str) -> int:
    """Return the address of code for `codegen.axis0_multiply.add_multiply`."""
    prefetch = axis0_multiply.NEAR if _prefetches_near() else axis0_multiply.FAR
    return _worker(lambda m: axis0_multiply.add_multiply(m, form, isa, prefetch), isa)


@cache
def axis0_expand_worker(form: CodeForm, isa: str, *, bfloat16: bool) -> int:
    """Return the address of code for `codegen.axis0_expand.add_expand`."""
    return _worker(lambda m: axis0_expand.add_expand(m, form, _output(isa, bfloat16)), isa)


@cache
def attend_worker(heads: int, size: int, isa: str, *, bfloat16: bool) -> int:
    """Return the address of code for `codegen.attend.add_attend`."""
    return _worker(lambda m: attend.add_attend(m, heads, size, isa, bfloat16=bfloat16), isa)


@cache
def prepare_worker(unit: int, lane: int, source: activations.Source, isa: str) -> int:
    """Return the address of code for `codegen.activations.add_prepare`."""
    return _worker(lambda m: activations.add_prepare(m, unit, lane, source), isa)


@cache
def rotate_worker(size: int, scaling: float, isa: str, *, bfloat16: bool) -> int:
    """Return the address of code for `codegen.rotate.add_rotate`."""
    return _worker(lambda m: rotate.add_rotate(m, size, scaling, bfloat16=bfloat16), isa)


@cache
def route_worker(isa: str, *, bfloat16: bool) -> int:
    """Return the address of code for `codegen.route.add_route`."""
    return _worker(lambda m: route.add_route(m, bfloat16=bfloat16), isa)


@cache
def normalize_worker(epsilon: float, isa: str, *, bfloat16: bool) -> int:
    """Return the address of code for `codegen.normalize.add_normalize`."""
    return _worker(lambda m: normalize.add_normalize(m, epsilon, bfloat16=bfloat16), isa)


@cache
def sequence_code() -> Code:
    """Return the code that does sequences of steps."""
    module = ir.Module(sequence.NAME)
    sequence.add_sequence(module)
    address = _compile(module, "generic")
    return Code(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address), address)


def _worker(write: _Write, isa: str) -> int:
    module = ir.Module(PARTS)
    add_parts(module, write(module))
    return _compile(module, isa)


_engines: list[object] = []  # code is freed with its engine


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
    features = str(binding.get_host_cpu_features().flatten())
    # Vectors of 512 bits are used even on CPUs for which LLVM prefers narrower ones.
    return features + (",-prefer-256-bit" if isa == "avx512-vnni" else "")
