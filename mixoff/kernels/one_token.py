"""What one token needs of several matrices, planned once: threads go through all of it together.

Between its steps nobody comes back to Python, whose own memory the weights push out of the caches.
D numbers of a token; G groups of h heads of size d, H = G h.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixoff.kernels.compile import through_steps
from mixoff.kernels.cpu import fastest, fastest_to_multiply
from mixoff.kernels.layout import Packed
from mixoff.kernels.steps import (
    Prepared,
    Room,
    attention,
    of_context,
    prepare,
    product,
    rotation,
    source_of,
)
from mixoff.kernels.threads import Place, Step, Work


class FeedForward:
    """An expert: (silu(gate x) * up x) down^T.

    Parameters
    ----------
    gate_up
        Rows of the gate, then as many of up, in pieces that take the same activations.
    down
        The other matrix.
    dtype
        x's: float32 or bfloat16.
    isa
        The instruction set; by default the fastest for each matrix.
    """

    def __init__(
        self,
        gate_up: Sequence[Packed],
        down: Packed,
        dtype: torch.dtype,
        isa: str | None = None,
    ) -> None:
        room, first = Room(), gate_up[0]
        rows = sum(piece.rows for piece in gate_up)
        inner = room.take(4 * rows)
        integers, x = _prepare(first, Place("x"), dtype, isa, room)
        within, hidden = prepare(
            down.form, inner, "gated", isa or fastest(), room, columns=down.columns
        )
        last = _products([down], hidden, Place("out"), isa)
        stages = [[integers], _products(gate_up, x, inner, isa), [within], last]
        self._work, self._rows, self._room = Work(stages, through_steps()), down.rows, room.nbytes
        self._read = (*gate_up, down)  # where they lie is part of the work

    def __call__(self, x: Tensor, *, spared: int = 0) -> Tensor:
        """Return what it makes of one token in float32, contiguous [1, D] -> [1, D]."""
        room, out = torch.empty(self._room, dtype=torch.uint8), torch.empty(1, self._rows)
        places = {"x": x.data_ptr(), "room": room.data_ptr(), "out": out.data_ptr()}
        self._work.run(spared=spared, **places)
        return out


class Projection:
    """Queries, keys and values of one token, turned by its position.

    Parameters
    ----------
    matrices
        Those of queries, keys and values, which take the same activations.
    size
        d, a multiple of 32.
    scaling
        What scores are multiplied by.
    dtype
        Of activations, keys and values: float32 or bfloat16.
    """

    def __init__(
        self,
        matrices: Sequence[Packed],
        size: int,
        scaling: float,
        dtype: torch.dtype,
        isa: str | None = None,
    ) -> None:
        room = Room()
        self._heads, self._groups, _ = (matrix.rows // size for matrix in matrices)
        self._size, self._dtype = size, dtype
        projected = room.take(4 * (self._heads + 2 * self._groups) * size)
        integers, x = _prepare(matrices[0], Place("x"), dtype, isa, room)
        turned = rotation(
            self._groups,
            self._heads // self._groups,
            size,
            x=projected,
            query=Place("query"),
            scaling=scaling,
            halves=dtype is torch.bfloat16,
        )
        stages = [[integers], _products(matrices, x, projected, isa), [turned]]
        self._work, self._room = Work(stages, through_steps()), room.nbytes
        self._read = tuple(matrices)

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, spared: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries for `AttendedProduct` [H, d], keys and values [G, d], of [1, D] and [d].

        All that is given is contiguous.
        """
        room = torch.empty(self._room, dtype=torch.uint8)
        query = torch.empty(self._heads, self._size)
        key, value = (torch.empty(self._groups, self._size, dtype=self._dtype) for _ in range(2))
        parts = {"x": x, "cos": cos, "sin": sin, "query": query, "key": key, "value": value}
        places = {name: part.data_ptr() for name, part in parts.items()}
        self._work.run(spared=spared, room=room.data_ptr(), **places)
        return query, key, value


class AttendedProduct:
    """One token's attention, and its product with a matrix.

    Parameters
    ----------
    matrix
        The matrix, of H d columns.
    heads, groups, size
        H, G, d.
    dtype
        Of keys and values: float32 or bfloat16.
    """

    def __init__(
        self,
        matrix: Packed,
        *,
        heads: int,
        groups: int,
        size: int,
        dtype: torch.dtype,
        isa: str | None = None,
    ) -> None:
        room, self._heads, self._rows = Room(), heads, matrix.rows
        found = room.take(4 * heads * size)
        attends = attention(
            groups,
            heads // groups,
            size,
            isa or fastest(),
            query=Place("query"),
            out=found,
            halves=dtype is torch.bfloat16,
        )
        integers, x = _prepare(matrix, found, torch.float32, isa, room)
        stages = [[attends], [integers], _products([matrix], x, Place("out"), isa)]
        self._work, self._room = Work(stages, through_steps()), room.nbytes
        self._read = matrix

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, spared: int = 0) -> Tensor:
        """Return it in float32, [1, N], of queries from `Projection` and two [G, T, d]."""
        given = of_context(key, value)
        scores = torch.empty(self._heads, given["room_tokens"])
        room, out = torch.empty(self._room, dtype=torch.uint8), torch.empty(1, self._rows)
        parts = {"query": query, "scores": scores, "room": room, "out": out}
        places = {name: part.data_ptr() for name, part in parts.items()}
        self._work.run(spared=spared, **places, **given)
        return out


def _prepare(
    matrix: Packed, x: Place, dtype: torch.dtype, isa: str | None, room: Room
) -> tuple[Step, Prepared]:
    """Return what makes integers of a token's activations, and these."""
    return prepare(matrix.form, x, source_of(dtype), isa or fastest(), room, columns=matrix.columns)


def _products(matrices: Sequence[Packed], x: Prepared, out: Place, isa: str | None) -> list[Step]:
    """Return what writes one token's products with matrices into out, side by side."""
    steps = []
    for matrix in matrices:
        steps.append(product(matrix, x, out, isa or fastest_to_multiply(matrix.form, 1)))
        out += 4 * matrix.rows
    return steps
