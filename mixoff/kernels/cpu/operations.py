"""The operations on torch tensors that a CPU has kernels for: mostly products of packed matrices.

`mixoff.kernels.base` declares them as `CPUOperations`. T tokens, N rows (outputs), K columns
(inputs).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mixoff.kernels.cpu.codegen.axis0_expand import WIDE
from mixoff.kernels.cpu.codegen.dot import WIDTH
from mixoff.kernels.cpu.codegen.floats import PIECE
from mixoff.kernels.cpu.codegen.multiply import TOGETHER
from mixoff.kernels.cpu.compile import (
    axis0_expand_worker,
    axis0_multiply_worker,
    expand_worker,
    has_bfloat16,
    has_narrow_vectors,
    sequence_code,
    usable_isas,
)
from mixoff.kernels.cpu.steps import (
    Workspace,
    addresses,
    attention,
    least_groups,
    least_rows,
    of_context,
    prepare,
    product,
    source_of,
)
from mixoff.kernels.cpu.threads import Step, Work
from mixoff.kernels.layout import CodeForm, Form, Packed, PackedAxis0, PackedLocation

DTYPES = (torch.float32, torch.bfloat16)
MATRICES = (Packed, PackedAxis0)
_SCRATCH_NBYTES = 8 << 20  # of dequantized rows at a time: many CPUs' caches hold them
_LEAST_ROWS = 512  # of them, where they are long: oneDNN took a third longer a row for fewer

_MOST_TOKENS = 128  # for more, dequantizing is faster: measured by benchmarks/switch.py on 2 cores
_MOST_TOKENS_BFLOAT16 = 24  # where the CPU multiplies bfloat16 itself: on 16 cores with AMX
_MOST_TOKENS_AXIS0 = 32  # AVX2 is then as fast both ways; AVX-512 gains from 48 packed, too


def fastest() -> str:
    """Return the fastest instruction set of this CPU, the default of all kernels."""
    return usable_isas()[0]


def fastest_to_multiply(form: CodeForm, tokens: int) -> str:
    """Return the instruction set that is the fastest for `multiply`, its default.

    One token's products with 4 bits in large groups take so few instructions that vectors half as
    wide keep up with memory. On CPUs where wide vectors are no faster, narrow ones reached a tenth
    more of its bandwidth. With 3 bits, AVX-VNNI keeps more sums than it has registers for, and AVX2
    is faster (benchmarks/kernels.py).
    """
    isa = fastest()
    if not isinstance(form, Form):
        return isa
    large = form.nbits == 4 and form.group_size >= WIDTH
    if large and tokens == 1 and has_narrow_vectors() and "avx-vnni" in usable_isas():
        return "avx-vnni"
    return "avx2" if form.nbits == 3 and isa == "avx-vnni" else isa


def most_tokens(dtype: torch.dtype, kind: type = Packed) -> int:
    """Return the most tokens for which `multiply` is faster than dequantizing such a matrix."""
    most = _MOST_TOKENS_AXIS0 if kind is PackedAxis0 else _MOST_TOKENS
    if dtype == torch.bfloat16 and has_bfloat16():
        return min(most, _MOST_TOKENS_BFLOAT16)
    return most


def scratch_nbytes(row_nbytes: int) -> int:
    """Return the bytes of rows of a size that `multiply_dequantized` dequantizes at a time."""
    return max(_SCRATCH_NBYTES, _LEAST_ROWS * row_nbytes)


def multiply(
    matrix: Packed | PackedAxis0, x: Tensor, *, isa: str | None = None, reserved_threads: int = 0
) -> Tensor:
    """Return x W^T in float32 straight from packed weights, [T, K] -> [T, N].

    Products are exact in activations of 16 bits (`mixoff.kernels.cpu.codegen.activations`), so the
    error is about 3e-5 of the result.

    Parameters
    ----------
    isa
        The instruction set; by default the fastest.
    reserved_threads
        The number of torch's threads that are left to other work.
    """
    isa = isa or fastest_to_multiply(matrix.form, len(x))
    if isinstance(matrix, PackedAxis0):
        return _multiply_axis0(matrix, x, isa, reserved_threads)
    count, tokens = len(x), x if x.dtype in DTYPES else x.float()
    if count >= TOGETHER and count % TOGETHER:
        tokens = torch.nn.functional.pad(tokens, (0, 0, 0, -count % TOGETHER))
    tokens = tokens.contiguous()
    out = empty_floats(len(tokens), matrix.rows)
    if len(tokens) >= TOGETHER:
        out.zero_()  # which the kernel for several tokens adds to
    workspace = Workspace()
    integers, prepared = prepare(
        matrix.form,
        tokens.data_ptr(),
        source_of(tokens.dtype),
        isa,
        workspace,
        columns=matrix.columns,
        tokens=len(tokens),
    )
    stages = [[integers], [product(PackedLocation.of(matrix), prepared, out.data_ptr(), isa)]]
    memory = empty_bytes(workspace.nbytes)
    _run(stages, reserved_threads=reserved_threads, workspace=memory.data_ptr())
    return out[:count]


def attends(key: Tensor, value: Tensor) -> bool:
    """Return whether `attend` takes such keys and values [G, T, d]."""
    return all(
        part.device.type == "cpu"
        and part.dtype in DTYPES
        and part.shape[-1] % PIECE == 0
        and part.stride(-1) == 1
        for part in (key, value)
    ) and (key.dtype, key.shape) == (value.dtype, value.shape)


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float, isa: str | None = None
) -> Tensor:
    """Return softmax(scaling * q K^T) V in float32 for one token, [G, h, d] and two [G, T, d].

    Each of G groups of h heads shares keys and values. Work is divided by groups.
    """
    scaled = (query.float() * (scaling / math.log(2))).contiguous()
    out = empty_floats(*query.shape)
    groups, heads, size = query.shape
    step = attention(
        groups,
        heads,
        size,
        isa or fastest(),
        query=scaled.data_ptr(),
        out=out.data_ptr(),
        bfloat16=key.dtype is torch.bfloat16,
        least=least_groups(key),
    )
    context = of_context(key, value)
    scores = empty_floats(groups, heads, context["padded_tokens"])
    _run([[step]], scores=scores.data_ptr(), **context)
    return out


def dequantize(
    matrix: Packed | PackedAxis0, dtype: torch.dtype, *, isa: str | None = None
) -> Tensor:
    """Return the [N, K] matrix in float32 or bfloat16."""
    rows = matrix.form.blocks * matrix.packed_rows
    out = torch.empty(rows, matrix.columns, dtype=dtype, device="cpu")
    _expand(matrix, out, 0, matrix.packed_rows, isa or fastest())
    return out[: matrix.rows]


def multiply_dequantized(
    matrix: Packed | PackedAxis0, x: Tensor, *, isa: str | None = None
) -> Tensor:
    """Return x W^T in x's type, float32 or bfloat16, [T, K] -> [T, N]: for many tokens.

    Rows are dequantized some at a time: few enough that the CPU's cache still holds them when the
    matrix library reads them, and enough for the library to be fast. On CPUs without instructions
    for bfloat16 they are float32 for bfloat16 activations, too.
    """
    dtype = x.dtype if has_bfloat16() else torch.float32
    tokens = x.to(dtype)
    blocks, rows = matrix.form.blocks, matrix.packed_rows
    row_nbytes = matrix.columns * dtype.itemsize
    height = max(1, min(rows, scratch_nbytes(row_nbytes) // (blocks * row_nbytes)))
    scratch = torch.empty(blocks * height, matrix.columns, dtype=dtype, device="cpu")
    out = torch.empty(len(x), blocks, rows, dtype=x.dtype, device="cpu")
    for first in range(0, rows, height):
        count = min(height, rows - first)
        part = scratch[: blocks * count]
        _expand(matrix, part, first, count, isa or fastest())
        product = torch.nn.functional.linear(tokens, part)  # [T, blocks * count]
        out[:, :, first : first + count] = product.view(len(x), blocks, count)
    return out.view(len(x), -1)[:, : matrix.rows]


def _expand(matrix: Packed | PackedAxis0, out: Tensor, first: int, count: int, isa: str) -> None:
    """Dequantize `count` packed rows into out [blocks * count, K]."""
    bfloat16 = out.dtype == torch.bfloat16
    if isinstance(matrix, PackedAxis0):
        parts = _axis0_parts(matrix)  # converted ones must live until the kernel has read them
        memory, sizes = [part.data_ptr() for part in parts], _axis0_sizes(matrix)
        worker = axis0_expand_worker(matrix.form, isa, bfloat16=bfloat16)
    else:
        memory = [*addresses(PackedLocation.of(matrix))]
        sizes = (matrix.packed_rows, matrix.rows, matrix.columns)
        worker = expand_worker(matrix.form, isa, bfloat16=bfloat16)
    arguments = [*memory, out.data_ptr(), *sizes, first, count]
    least = least_rows(matrix.form, matrix.columns)
    _run([[Step(worker, arguments, count=count, least=least, first=first)]])


def _multiply_axis0(matrix: PackedAxis0, x: Tensor, isa: str, reserved_threads: int) -> Tensor:
    """Return x W^T, as `multiply`."""
    tokens, parts = x.float().contiguous(), _axis0_parts(matrix)
    out = empty_floats(len(x), matrix.rows).zero_()
    least = least_rows(matrix.form, matrix.columns)
    step = Step(
        axis0_multiply_worker(matrix.form, isa),
        [*(part.data_ptr() for part in (*parts, tokens, out)), *_axis0_sizes(matrix), len(x)],
        count=matrix.bundles,
        least=-(-least * matrix.bundles // matrix.packed_rows),
    )
    _run([[step]], reserved_threads=reserved_threads)
    return out


def _axis0_parts(matrix: PackedAxis0) -> Sequence[Tensor]:
    """Return a matrix's parts as kernels take them."""
    step, zero = matrix.scale_step.float().flatten(), matrix.scale_zero.float().flatten()
    if matrix.columns % WIDE or len(step) % WIDE:
        # Kernels read WIDE numbers from any of the S on, which then may go on from the start.
        wrapped = torch.arange(len(step) + WIDE, device="cpu") % len(step)
        step, zero = step[wrapped], zero[wrapped]
    numbers = (matrix.zero_step.float(), matrix.zero_zero.float())
    return (matrix.codes, matrix.scale, matrix.zero, step, zero, *numbers)


def _axis0_sizes(matrix: PackedAxis0) -> Sequence[int]:
    """Return R, B, K, S."""
    period = matrix.scale_step.numel()
    return (matrix.packed_rows, matrix.bundles, matrix.columns, period)


def empty_floats(*shape: int) -> Tensor:
    """Return uninitialized float32 in host memory, whatever type and device torch defaults to."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def empty_bytes(nbytes: int) -> Tensor:
    """Return uninitialized bytes in host memory."""
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu")


def _run(stages: Sequence[Sequence[Step]], *, reserved_threads: int = 0, **operands: int) -> None:
    """Run stages of steps once."""
    Work(stages, sequence_code()).run(operands, reserved_threads=reserved_threads)
