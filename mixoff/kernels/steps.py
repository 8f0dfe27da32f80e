"""What kernels do, as steps for threads: which code, on what memory, in how many parts.

T tokens, N rows (outputs), K columns (inputs). Steps hold addresses: who makes them keeps tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixoff.kernels.activations import Source, piece_size
from mixoff.kernels.compile import (
    attend_worker,
    multiply_worker,
    prepare_worker,
    rotate_worker,
)
from mixoff.kernels.dot import WIDTH
from mixoff.kernels.floats import PIECE
from mixoff.kernels.layout import Form, Packed, PackedAxis0
from mixoff.kernels.multiply import TOGETHER
from mixoff.kernels.threads import Step

_LEAST_NBYTES = 1 << 17  # packed bytes that are worth a thread
_LEAST_NUMBERS = 1 << 12  # activations that are


@dataclass(frozen=True)
class Prepared:
    """Activations as integers (`mixoff.kernels.activations`).

    Parameters
    ----------
    addresses
        Where high and low bytes begin, steps, and sums.
    tokens, columns
        T, K.
    room
        The memory in which they lie.
    """

    addresses: Sequence[int]
    tokens: int
    columns: int
    room: Tensor


def prepare(form: Form, x: Tensor, isa: str, *, gated: bool = False) -> tuple[Step, Prepared]:
    """Return what makes integers of contiguous activations [T, K], and these.

    Parameters
    ----------
    x
        float32 or bfloat16; if they are `gated` float32 [T, 2 K], of which silu(a) * b is taken.
    """
    tokens, columns = len(x), x.shape[-1] // (2 if gated else 1)
    padded = _padded(columns)
    nbytes = tokens * padded  # of high, and of low; then float32 steps and sums
    room = torch.empty(2 * nbytes + 4 * (nbytes // WIDTH + nbytes // form.unit), dtype=torch.uint8)
    steps = 2 * nbytes
    starts = (0, nbytes, steps, steps + 4 * (nbytes // WIDTH))
    addresses = [room.data_ptr() + start for start in starts]
    source: Source = "bfloat16" if x.dtype is torch.bfloat16 else "float32"
    size = piece_size(form.lane)
    pieces = -(-columns // size)
    step = Step(
        prepare_worker(form.unit, form.lane, "gated" if gated else source, isa),
        [x.data_ptr(), *addresses, columns, padded, pieces],
        count=tokens * pieces,
        least=_LEAST_NUMBERS // size,
    )
    return step, Prepared(addresses, tokens, columns, room)


def product(matrix: Packed, x: Prepared, out: Tensor, isa: str) -> Step:
    """Return what writes x W^T into float32 out [T, N]; of `TOGETHER` tokens or more, adds it.

    Rows of out may be apart; its columns aren't.
    """
    sizes = (matrix.packed_rows, matrix.rows, x.columns, x.tokens, _padded(x.columns))
    return Step(
        multiply_worker(matrix.form, isa, together=x.tokens >= TOGETHER),
        [*buffers(matrix), *x.addresses, out.data_ptr(), *sizes, out.stride(0)],
        count=matrix.packed_rows,
        least=least_rows(matrix),
    )


def rotation(
    x: Tensor, cos: Tensor, sin: Tensor, query: Tensor, key: Tensor, value: Tensor, scaling: float
) -> Step:
    """Return what makes of one token's float32 x what `mixoff.kernels.rotate` does.

    All are contiguous: queries [H, d], keys and values [G, d], and x of all H + 2 G heads.
    """
    (heads, size), groups, halves = query.shape, len(key), key.dtype is torch.bfloat16
    return Step(
        rotate_worker(size, scaling, halves=halves),
        [*(part.data_ptr() for part in (x, cos, sin, query, key, value)), heads, groups],
        count=heads + 2 * groups,
        least=-(-_LEAST_NUMBERS // size),
    )


def attention(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, isa: str
) -> tuple[Step, Tensor]:
    """Return what attends for one token, and the memory that it needs for that.

    Parameters
    ----------
    query, key, value, out
        Contiguous float32 [G, h, d], multiplied already; two [G, T, d]; float32 [G, h, d].
    """
    groups, heads, size = query.shape
    tokens, itemsize = key.shape[1], key.dtype.itemsize
    room = (tokens // PIECE + 1) * PIECE
    scores = torch.empty(groups, heads, room)
    addresses = [part.data_ptr() for part in (query, key, value, scores, out)]
    strides = [n * itemsize for part in (key, value) for n in part.stride()[:2]]
    step = Step(
        attend_worker(heads, size, isa, halves=key.dtype is torch.bfloat16),
        [*addresses, tokens, room, *strides],
        count=groups,
        least=-(-_LEAST_NBYTES // max(1, 2 * tokens * size * itemsize)),
    )
    return step, scores


def buffers(matrix: Packed) -> Sequence[int]:
    """Return the addresses of a matrix's parts; 0 for pairs that it doesn't have."""
    parts = (matrix.codes, matrix.scale, matrix.zero, matrix.pairs)
    return [0 if part is None else part.data_ptr() for part in parts]


def least_rows(matrix: Packed | PackedAxis0) -> int:
    """Return how many packed rows are worth a thread."""
    return max(1, _LEAST_NBYTES * matrix.packed_rows // max(1, matrix.codes.nbytes))


def _padded(columns: int) -> int:
    """Return K as activations pad it."""
    return -(-columns // WIDTH) * WIDTH
