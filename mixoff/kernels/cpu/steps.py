"""Steps for threads: which compiled code runs on which memory, and in how many parts.

T tokens, N rows (outputs), K columns (inputs); of attention G groups of h heads of size d.
Steps hold addresses of memory, or operands for addresses that differ from run to run; they keep no
memory alive. The caller that runs them holds the tensors.
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
from mixoff.kernels.layout import CodeForm, Form, PackedLocation

_LEAST_NBYTES = 1 << 17  # packed bytes that are worth a thread
_LEAST_NUMBERS = 1 << 11  # activations that are worth a thread


class Workspace:
    """Memory for what steps pass to later steps: its size, and the offset of each part."""

    def __init__(self) -> None:
        self.nbytes = 0

    def take(self, nbytes: int) -> Operand:
        """Return the address of so many bytes that nothing else uses, on a cache line."""
        operand = Operand("workspace", self.nbytes)
        self.nbytes += -(-nbytes // WIDTH) * WIDTH
        return operand


@dataclass(frozen=True)
class Prepared:
    """Activations as integers (`mixoff.kernels.cpu.codegen.activations`).

    Parameters
    ----------
    operands
        Addresses of high bytes, of low bytes, of steps and of sums.
    tokens, columns
        T, K.
    """

    operands: Sequence[Operand]
    tokens: int
    columns: int


def prepare(
    form: Form,
    x: Argument,
    source: Source,
    isa: str,
    workspace: Workspace,
    *,
    columns: int,
    tokens: int = 1,
) -> tuple[Step, Prepared]:
    """Return the step that makes integers of contiguous activations [T, K], and the integers."""
    nbytes = tokens * _padded(columns)
    sizes = (nbytes, nbytes, 4 * (nbytes // WIDTH), 4 * (nbytes // form.unit))
    prepared = Prepared([*map(workspace.take, sizes)], tokens, columns)
    size = piece_size(form.lane)
    pieces = -(-columns // size)
    step = Step(
        prepare_worker(form.unit, form.lane, source, isa),
        [x, *prepared.operands, columns, _padded(columns), pieces],
        count=tokens * pieces,
        least=_LEAST_NUMBERS // size,
    )
    return step, prepared


def source_of(dtype: torch.dtype) -> Source:
    """Return the name that `prepare` has for activations in float32 or bfloat16."""
    return "bfloat16" if dtype is torch.bfloat16 else "float32"


def product(matrix: PackedLocation, x: Prepared, out: Argument, isa: str) -> Step:
    """Return the step that writes x W^T into float32 out [T, N].

    For `TOGETHER` tokens or more it adds to out instead.
    """
    sizes = (matrix.packed_rows, matrix.rows, x.columns, x.tokens, _padded(x.columns))
    return Step(
        multiply_worker(matrix.form, isa, together=x.tokens >= TOGETHER),
        [*addresses(matrix), *x.operands, out, *sizes, matrix.rows],
        count=matrix.packed_rows,
        least=least_rows(matrix.form, matrix.columns),
    )


def rotation(
    heads: int, groups: int, size: int, isa: str, *, x: Operand, scaling: float, bfloat16: bool
) -> Step:
    """Return the step that applies `codegen.rotate` to one token's x of all heads.

    Its operands are cos and sin, query, key and value.
    """
    operands = map(Operand, ("cos", "sin", "query", "key", "value"))
    return Step(
        rotate_worker(size, scaling, isa, bfloat16=bfloat16),
        [x, *operands, heads, groups],
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
    bfloat16: bool,
    least: int = 1,
) -> Step:
    """Return the step of one token's attention, with operands for scores and `of_context`."""
    memory = (query, Operand("key"), Operand("value"), Operand("scores"), out)
    numbers = ("tokens", "padded_tokens", "key_head", "key_row", "value_head", "value_row")
    return Step(
        attend_worker(heads, size, isa, bfloat16=bfloat16),
        [*memory, *map(Operand, numbers)],
        count=groups,
        least=least,
    )


def least_groups(key: Tensor) -> int:
    """Return the number of groups of keys [G, T, d], with their values, that is worth a thread."""
    _, tokens, size = key.shape
    return -(-_LEAST_NBYTES // max(1, 2 * tokens * size * key.dtype.itemsize))


def of_context(key: Tensor, value: Tensor) -> dict[str, int]:
    """Return the operands of `attention` for keys and values [G, T, d], all but scores.

    Scores are float32 [G, h, padded_tokens] that the step writes into.
    """
    tokens, itemsize = key.shape[1], key.dtype.itemsize
    (key_head, key_row, _), (value_head, value_row, _) = key.stride(), value.stride()
    return {
        "key": key.data_ptr(),
        "value": value.data_ptr(),
        "tokens": tokens,
        "padded_tokens": (tokens // PIECE + 1) * PIECE,
        "key_head": key_head * itemsize,
        "key_row": key_row * itemsize,
        "value_head": value_head * itemsize,
        "value_row": value_row * itemsize,
    }


def addresses(matrix: PackedLocation) -> Sequence[int]:
    """Return the addresses of a matrix's parts as kernels take them."""
    return (matrix.codes, matrix.scale, matrix.zero, matrix.pairs)


def least_rows(form: CodeForm, columns: int) -> int:
    """Return the number of packed rows, in all planes, that is worth a thread."""
    planes = 3 if form.nbits == 3 else 1
    return max(1, _LEAST_NBYTES // max(1, planes * columns))


def _padded(columns: int) -> int:
    """Return K padded to whole blocks of activations."""
    return -(-columns // WIDTH) * WIDTH
