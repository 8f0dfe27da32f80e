"""The operations on torch tensors that a GPU has kernels for: products of packed matrices.

`mixoff.kernels.base` declares them as `PackedOperations`. T tokens, N rows (outputs), K columns
(inputs). Work is queued on the current stream of the tensors' device. Sizes of tiles depend on
forms and shapes alone: nothing is tuned at run time, and a result is the same in every run.
"""

from contextlib import AbstractContextManager
from subprocess import SubprocessError
from typing import Any

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from mixoff.kernels.layout import Form, Packed
from mixoff.kernels.triton.expand import expand_kernel
from mixoff.kernels.triton.multiply import multiply_kernel

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MATRICES = (Packed,)
_SCRATCH_NBYTES = 32 << 20  # of dequantized rows at a time: a large GPU's cache holds them

_MOST_TOKENS = 16  # that `multiply` is used for: an estimate, since the best number isn't measured
_ROWS = 8  # of a program at most, and always for 3 bits
_PROGRAMS = 512  # that occupy a large GPU
_TOKENS = 4  # of a program
_WARP = 32  # threads


def interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter, on tensors in host memory."""
    return not isinstance(multiply_kernel, triton.JITFunction)


def failure(device: torch.device) -> str | None:
    """Return the error of a small product on a device; None if its result is right.

    A missing compiler or an old driver raises only when a kernel first runs.
    """
    ones = torch.ones(8, 8, dtype=torch.uint8, device=device)
    scale, x = ones[:, :1].half(), ones.float()
    try:
        y = multiply(Packed(Form(8, 8, False), 8, 8, 3 * ones, scale, scale, None), x)
        is_right = bool((y == 8 * (3 - 1)).all())
    except (TritonError, SubprocessError, OSError, RuntimeError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None if is_right else "a product came out wrong"


def most_tokens(dtype: torch.dtype, kind: type = Packed) -> int:
    """Return the most tokens that `multiply` is used for, whatever the type and matrix."""
    del dtype, kind
    return _MOST_TOKENS


def multiply(matrix: Packed, x: Tensor, *, reserved_threads: int = 0) -> Tensor:
    """Return x W^T in x's type straight from packed weights, [T, K] -> [T, N].

    Sums are in float32. `reserved_threads` has no effect: a GPU computes.
    """
    del reserved_threads
    tokens, columns = x.shape
    form, words = matrix.form, columns // 8
    out = torch.empty(tokens, matrix.rows, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    per_chunk = 1 if form.group_size < 16 else 2
    warps = min(4, max(1, words // per_chunk // _WARP))
    warps = 1 << (warps.bit_length() - 1)
    height = _height(form, matrix.packed_rows)
    tokens_each = min(_TOKENS, triton.next_power_of_2(tokens))
    grid = (-(-matrix.packed_rows // height) * -(-tokens // tokens_each),)
    with _current_device_of(x):
        multiply_kernel[grid](
            _words(matrix.codes, torch.int64),
            matrix.scale,
            matrix.zero,
            _pairs(matrix),
            _words(x, torch.int64),
            out.view(torch.int16) if x.dtype == torch.bfloat16 else out,
            matrix.packed_rows,
            matrix.rows,
            words,
            columns // form.group_size,
            tokens,
            **_constants(form, x.dtype),
            WORDS=per_chunk,
            TOKENS=tokens_each,
            HEIGHT=height,
            CHUNKS=_WARP * warps,
            num_warps=warps,
            enable_fp_fusion=True,
        )
    return out


def dequantize(matrix: Packed, dtype: torch.dtype) -> Tensor:
    """Return the [N, K] matrix in float32, float16 or bfloat16, equal to torch's to the bit."""
    shape = (matrix.form.blocks * matrix.packed_rows, matrix.columns)
    out = torch.empty(shape, dtype=dtype, device=matrix.codes.device)
    _expand(matrix, out, 0, matrix.packed_rows)
    return out[: matrix.rows]


def scratch_nbytes(row_nbytes: int) -> int:
    """Return the bytes of rows that `multiply_dequantized` dequantizes at a time."""
    del row_nbytes
    return _SCRATCH_NBYTES


def multiply_dequantized(matrix: Packed, x: Tensor) -> Tensor:
    """Return x W^T in x's type, [T, K] -> [T, N]: for many tokens.

    Rows are dequantized some at a time into one buffer, which the matrix library reads.
    """
    blocks, rows = matrix.form.blocks, matrix.packed_rows
    row_nbytes = blocks * matrix.columns * x.dtype.itemsize
    height = max(1, min(rows, _SCRATCH_NBYTES // row_nbytes))
    scratch = torch.empty(blocks * height, matrix.columns, dtype=x.dtype, device=x.device)
    out = torch.empty(len(x), blocks, rows, dtype=x.dtype, device=x.device)
    for first in range(0, rows, height):
        count = min(height, rows - first)
        part = scratch[: blocks * count]
        _expand(matrix, part, first, count)
        product = torch.nn.functional.linear(x, part)  # [T, blocks * count]
        out[:, :, first : first + count] = product.view(len(x), blocks, count)
    return out.view(len(x), -1)[:, : matrix.rows]


def _expand(matrix: Packed, out: Tensor, first: int, count: int) -> None:
    """Dequantize `count` packed rows into out [blocks * count, K]."""
    form, words = matrix.form, matrix.columns // 4
    height = _ROWS // form.blocks
    warps = 4 if words >= 4 * _WARP else 1
    grid = (-(-count // height) * -(-words // (_WARP * warps)),)
    with _current_device_of(out):
        expand_kernel[grid](
            _words(matrix.codes, torch.int32),
            matrix.scale,
            matrix.zero,
            _pairs(matrix),
            out.view(torch.int64),
            first,
            count,
            matrix.packed_rows,
            matrix.rows,
            words,
            matrix.columns // form.group_size,
            **_constants(form, out.dtype),
            HEIGHT=height,
            WORDS=_WARP * warps,
            num_warps=warps,
            enable_fp_fusion=False,
        )


def _current_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make a tensor's device the current one, on which Triton launches; no effect for a CPU's."""
    current: AbstractContextManager[Any] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return current


def _height(form: Form, packed_rows: int) -> int:
    """Return the packed rows of a program: fewer where there would be few programs."""
    height = _ROWS // form.blocks
    while height > 1 and packed_rows < _PROGRAMS * height:
        height //= 2
    return height


def _constants(form: Form, dtype: torch.dtype) -> dict[str, Any]:
    """Return the constants that a kernel is compiled for."""
    return {
        "NBITS": form.nbits,
        "BLOCKS": form.blocks,
        "GROUP": form.group_size,
        "BYTES": form.byte_scales,
        "KIND": str(dtype).removeprefix("torch."),
    }


def _pairs(matrix: Packed) -> Tensor:
    """Return a matrix's pairs as int64; without any, some tensor that the kernel doesn't read."""
    return matrix.scale if matrix.pairs is None else _words(matrix.pairs, torch.int64)


def _words(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor's bytes as words [n], copied if they aren't aligned for words."""
    flat = tensor.reshape(-1)
    bytes_before = flat.storage_offset() * flat.itemsize
    if flat.data_ptr() % dtype.itemsize or bytes_before % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype)
