"""The operations that a CPU has kernels for, on torch tensors: products of packed matrices, mostly.

T tokens, N rows (outputs), K columns (inputs).
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
    through_steps,
    usable_isas,
)
from mixoff.kernels.cpu.steps import (
    Workspace,
    attention,
    buffers,
    least_groups,
    least_rows,
    of_context,
    prepare,
    product,
    source_of,
)
from mixoff.kernels.cpu.threads import Step, Work
from mixoff.kernels.layout import CodeForm, Form, Packed, PackedAxis0

DTYPES = (torch.float32, torch.bfloat16)
MATRICES = (Packed, PackedAxis0)
_SCRATCH_NBYTES = 8 << 20  # of dequantized rows at a time: many CPUs' caches hold them
_LEAST_ROWS = 512  # of them, where they are long: oneDNN took a third longer a row for fewer

_MOST_TOKENS = 128  # beyond, dequantizing is faster: found by benchmarks/switch.py on 2 cores
_MOST_TOKENS_BFLOAT16 = 24  # where the CPU multiplies bfloat16 itself: on 16 cores with AMX
_MOST_TOKENS_AXIS0 = 32  # where AVX2 is about as fast either way; AVX-512 gains until 48 and on


def fastest() -> str:
    """Return the instruction set that is used where none is named."""
    return usable_isas()[0]


def fastest_to_multiply(form: CodeForm, tokens: int) -> str:
    """Return the instruction set that `multiply` uses where none is named.

    One token's products with 4 bits in large groups take so few steps that vectors half as wide
    keep up with memory; where wide ones are no faster they got a tenth more from it. With 3 bits
    AVX-VNNI keeps more sums than it has registers for, and AVX2 is faster (benchmarks/kernels.py).
    """
    isa = fastest()
    if not isinstance(form, Form):
        return isa
    large = form.nbits == 4 and form.group_size >= WIDTH
    if large and tokens == 1 and has_narrow_vectors() and "avx-vnni" in usable_isas():
        return "avx-vnni"
    return "avx2" if form.nbits == 3 and isa == "avx-vnni" else isa


def most_tokens(dtype: torch.dtype, kind: type = Packed) -> int:
    """Return up to how many tokens `multiply` is faster than dequantizing such a matrix first."""
    most = _MOST_TOKENS_AXIS0 if kind is PackedAxis0 else _MOST_TOKENS
    if dtype == torch.bfloat16 and has_bfloat16():
        return min(most, _MOST_TOKENS_BFLOAT16)
    return most


def scratch_nbytes(row_nbytes: int) -> int:
    """Return how many bytes of rows of so many `multiply_dequantized` dequantizes at a time."""
    return max(_SCRATCH_NBYTES, _LEAST_ROWS * row_nbytes)


def multiply(
    matrix: Packed | PackedAxis0, x: Tensor, *, isa: str | None = None, spared: int = 0
) -> Tensor:
    """Return x W^T in float32 straight from packed weights, [T, K] -> [T, N].

    As many threads are `spared` for something else. Products are exact in activations of 16 bits
    (`mixoff.kernels.cpu.codegen.activations`), so the error is about 3e-5 of the result.
    """
    isa = isa or fastest_to_multiply(matrix.form, len(x))
    if isinstance(matrix, PackedAxis0):
        return _multiply_axis0(matrix, x, isa, spared)
    count, given = len(x), x if x.dtype in DTYPES else x.float()
    if count >= TOGETHER and count % TOGETHER:
        given = torch.nn.functional.pad(given, (0, 0, 0, -count % TOGETHER))
    given = given.contiguous()
    together = len(given) >= TOGETHER
    out = empty_floats(len(given), matrix.rows)
    if together:
        out.zero_()
    room = Workspace()
    integers, prepared = prepare(
        matrix.form,
        given.data_ptr(),
        source_of(given.dtype),
        isa,
        room,
        columns=matrix.columns,
        tokens=len(given),
    )
    stages = [[integers], [product(matrix, prepared, out.data_ptr(), isa)]]
    memory = empty_bytes(room.nbytes)
    _share_out(stages, spared=spared, room=memory.data_ptr())
    return out[:count]


def attends(key: Tensor, value: Tensor) -> bool:
    """Return whether `attend` takes such keys and values."""
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

    Of G groups of h heads, each shares keys and values. Threads share groups.
    """
    given = (query.float() * (scaling / math.log(2))).contiguous()
    out = empty_floats(*query.shape)
    groups, heads, size = query.shape
    step = attention(
        groups,
        heads,
        size,
        isa or fastest(),
        query=given.data_ptr(),
        out=out.data_ptr(),
        halves=key.dtype is torch.bfloat16,
        least=least_groups(key),
    )
    context = of_context(key, value)
    scores = empty_floats(groups, heads, context["room_tokens"])
    _share_out([[step]], scores=scores.data_ptr(), **context)
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

    Rows are dequantized some at a time: as many as the CPU's cache holds until the matrix library
    takes them, but not too few for it. They are float32 for bfloat16, too, where the CPU doesn't
    multiply that itself.
    """
    dtype = x.dtype if has_bfloat16() else torch.float32
    given = x.to(dtype)
    blocks, rows = matrix.form.blocks, matrix.packed_rows
    row_nbytes = matrix.columns * dtype.itemsize
    height = max(1, min(rows, scratch_nbytes(row_nbytes) // (blocks * row_nbytes)))
    scratch = torch.empty(blocks * height, matrix.columns, dtype=dtype, device="cpu")
    out = torch.empty(len(x), blocks, rows, dtype=x.dtype, device="cpu")
    for first in range(0, rows, height):
        count = min(height, rows - first)
        part = scratch[: blocks * count]
        _expand(matrix, part, first, count, isa or fastest())
        product = torch.nn.functional.linear(given, part)  # [T, blocks * count]
        out[:, :, first : first + count] = product.view(len(x), blocks, count)
    return out.view(len(x), -1)[:, : matrix.rows]


def _expand(matrix: Packed | PackedAxis0, out: Tensor, first: int, count: int, isa: str) -> None:
    """Dequantize `count` packed rows into out [blocks * count, K]."""
    halves = out.dtype == torch.bfloat16
    if isinstance(matrix, PackedAxis0):
        parts = _axis0_parts(matrix)
        addresses = [part.data_ptr() for part in parts]
        worker, sizes = axis0_expand_worker(matrix.form, isa, halves=halves), _axis0_sizes(matrix)
    else:
        addresses, sizes = [*buffers(matrix)], [matrix.packed_rows, matrix.rows, matrix.columns]
        worker = expand_worker(matrix.form, isa, halves=halves)
    arguments = [*addresses, out.data_ptr(), *sizes, first, count]
    step = Step(worker, arguments, count=count, least=least_rows(matrix), first=first)
    _share_out([[step]])


def _multiply_axis0(matrix: PackedAxis0, x: Tensor, isa: str, spared: int) -> Tensor:
    """Return x W^T, as `multiply`."""
    given, parts = x.float().contiguous(), _axis0_parts(matrix)
    out = empty_floats(len(x), matrix.rows).zero_()
    addresses = [part.data_ptr() for part in (*parts, given, out)]
    step = Step(
        axis0_multiply_worker(matrix.form, isa),
        [*addresses, *_axis0_sizes(matrix), len(x)],
        count=matrix.bundles,
        least=-(-least_rows(matrix) * matrix.bundles // matrix.packed_rows),
    )
    _share_out([[step]], spared=spared)
    return out


def _axis0_parts(matrix: PackedAxis0) -> Sequence[Tensor]:
    """Return a matrix's parts as kernels take them."""
    step, zero = matrix.scale_step.float().flatten(), matrix.scale_zero.float().flatten()
    if matrix.columns % WIDE or len(step) % WIDE:  # else no vector goes on from the start
        again = torch.arange(len(step) + WIDE, device="cpu") % len(step)
        step, zero = step[again], zero[again]
    numbers = (matrix.zero_step.float(), matrix.zero_zero.float())
    return (matrix.codes, matrix.scale, matrix.zero, step, zero, *numbers)


def _axis0_sizes(matrix: PackedAxis0) -> Sequence[int]:
    """Return R, B, K, S."""
    period = matrix.scale_step.numel()
    return (matrix.packed_rows, matrix.bundles, matrix.columns, period)


def empty_floats(*shape: int) -> Tensor:
    """Return memory for numbers that kernels write, whatever torch makes by default."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def empty_bytes(nbytes: int) -> Tensor:
    """Return memory for what steps leave in it for later ones."""
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu")


def _share_out(stages: Sequence[Sequence[Step]], *, spared: int = 0, **values: int) -> None:
    """Let threads go through stages of steps once."""
    Work(stages, through_steps()).run(values, spared=spared)
