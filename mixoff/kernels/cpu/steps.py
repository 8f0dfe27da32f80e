"""What kernels do, as steps for threads: which code, on what memory, in how many parts.

T tokens, N rows (outputs), K columns (inputs); of attention G groups of h heads of size d.
Memory is told by addresses, or by places where it changes: who runs steps keeps tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixoff.kernels.cpu.codegen.activations import Source, piece_size
from mixoff.kernels.cpu.codegen.dot import WIDTH
from mixoff.kernels.cpu.codegen.floats import PIECE
from mixoff.kernels.cpu.codegen.multiply import TOGETHER
from mixoff.kernels.cpu.compile import (
    attend_worker,
    multiply_worker,
    prepare_worker,
    rotate_worker,
)
from mixoff.kernels.cpu.threads import Argument, Operand, Step
from mixoff.kernels.layout import Form, Packed, PackedAxis0

_LEAST_NBYTES = 1 << 17  # packed bytes that are worth a thread
_LEAST_NUMBERS = 1 << 11  # activations that are


class Workspace:
    """Memory that steps leave something in for later ones: how much, and who has which."""

    def __init__(self) -> None:
        self.nbytes = 0

    def take(self, nbytes: int) -> Operand:
        """Return where so many bytes are."""
        place = Operand("room", self.nbytes)
        self.nbytes += -(-nbytes // WIDTH) * WIDTH
        return place


@dataclass(frozen=True)
class Prepared:
    """Activations as integers (`mixoff.kernels.cpu.codegen.activations`).

    Parameters
    ----------
    places
        Where high and low bytes begin, steps, and sums.
    tokens, columns
        T, K.
    """

    places: Sequence[Operand]
    tokens: int
    columns: int


def prepare(
    form: Form,
    x: Argument,
    source: Source,
    isa: str,
    room: Workspace,
    *,
    columns: int,
    tokens: int = 1,
) -> tuple[Step, Prepared]:
    """Return what makes integers of activations [T, K], which are contiguous, and these."""
    nbytes = tokens * _padded(columns)
    sizes = (nbytes, nbytes, 4 * (nbytes // WIDTH), 4 * (nbytes // form.unit))
    prepared = Prepared([*map(room.take, sizes)], tokens, columns)
    size = piece_size(form.lane)
    pieces = -(-columns // size)
    step = Step(
        prepare_worker(form.unit, form.lane, source, isa),
        [x, *prepared.places, columns, _padded(columns), pieces],
        count=tokens * pieces,
        least=_LEAST_NUMBERS // size,
    )
    return step, prepared


def source_of(dtype: torch.dtype) -> Source:
    """Return what `prepare` calls activations of float32 or bfloat16."""
    return "bfloat16" if dtype is torch.bfloat16 else "float32"


def product(matrix: Packed, x: Prepared, out: Argument, isa: str) -> Step:
    """Return what writes x W^T into float32 out [T, N]; of `TOGETHER` tokens or more, adds it."""
    sizes = (matrix.packed_rows, matrix.rows, x.columns, x.tokens, _padded(x.columns))
    return Step(
        multiply_worker(matrix.form, isa, together=x.tokens >= TOGETHER),
        [*buffers(matrix), *x.places, out, *sizes, matrix.rows],
        count=matrix.packed_rows,
        least=least_rows(matrix),
    )


def rotation(
    heads: int, groups: int, size: int, isa: str, *, x: Operand, scaling: float, halves: bool
) -> Step:
    """Return what makes of one token's x, of all heads, what `codegen.rotate` does.

    It has places for cos and sin, query, key and value.
    """
    places = map(Operand, ("cos", "sin", "query", "key", "value"))
    return Step(
        rotate_worker(size, scaling, isa, halves=halves),
        [x, *places, heads, groups],
        count=heads + 2 * groups,
        least=-(-_LEAST_NUMBERS // size),
    )


def attention(
    groups: int,
    heads: int,
    size: int,
    isa: str,
    *,
    query: Argument,
    out: Argument,
    halves: bool,
    least: int = 1,
) -> Step:
    """Return what attends for one token, with places for what `of_context` tells."""
    memory = (query, Operand("key"), Operand("value"), Operand("scores"), out)
    numbers = ("tokens", "room_tokens", "key_head", "key_row", "value_head", "value_row")
    return Step(
        attend_worker(heads, size, isa, halves=halves),
        [*memory, *map(Operand, numbers)],
        count=groups,
        least=least,
    )


def least_groups(key: Tensor) -> int:
    """Return how many groups of keys [G, T, d], and values, are worth a thread."""
    _, tokens, size = key.shape
    return -(-_LEAST_NBYTES // max(1, 2 * tokens * size * key.dtype.itemsize))


def of_context(key: Tensor, value: Tensor) -> dict[str, int]:
    """Return what stands for the places of keys and values [G, T, d], but for scores.

    These are float32 [G, h, room_tokens], to write into.
    """
    tokens, itemsize = key.shape[1], key.dtype.itemsize
    (key_head, key_row, _), (value_head, value_row, _) = key.stride(), value.stride()
    return {
        "key": key.data_ptr(),
        "value": value.data_ptr(),
        "tokens": tokens,
        "room_tokens": (tokens // PIECE + 1) * PIECE,
        "key_head": key_head * itemsize,
        "key_row": key_row * itemsize,
        "value_head": value_head * itemsize,
        "value_row": value_row * itemsize,
    }


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
