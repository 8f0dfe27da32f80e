"""What one token needs of several matrices, planned once: threads go through all of it together.

Between its steps nobody comes back to Python, whose own memory the weights push out of the caches.
D numbers of a token; G groups of h heads of size d, H = G h.

Plans hold addresses of their matrices' parts, and keep these; who moves their bytes plans again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixoff.kernels.cpu.codegen.floats import PIECE
from mixoff.kernels.cpu.compile import through_steps
from mixoff.kernels.cpu.operations import (
    empty_bytes,
    empty_floats,
    fastest,
    fastest_to_multiply,
)
from mixoff.kernels.cpu.steps import (
    Prepared,
    Workspace,
    attention,
    of_context,
    prepare,
    product,
    rotation,
    source_of,
)
from mixoff.kernels.cpu.threads import Operand, Step, Work
from mixoff.kernels.layout import Packed


def can_rotate(size: int) -> bool:
    """Return whether heads of a size can be turned: each half is whole vectors."""
    return size % (2 * PIECE) == 0


class _Plan:
    """Stages of steps, the room that they need, and the matrices that they read."""

    def __init__(
        self, stages: Sequence[Sequence[Step]], room: Workspace, matrices: Sequence[Packed]
    ) -> None:
        self._work, self._room = Work(stages, through_steps()), room.nbytes
        self._matrices = tuple(matrices)  # kept: where they lie is part of the work

    def _run(self, parts: dict[str, Tensor], spared: int, **numbers: int) -> None:
        """Go through all stages, with contiguous tensors for what they have places for."""
        room = empty_bytes(self._room)
        numbers["room"] = room.data_ptr()
        for name, part in parts.items():
            numbers[name] = part.data_ptr()
        self._work.run(numbers, spared=spared)


class FeedForward(_Plan):
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
        rows = sum(piece.rows for piece in gate_up)
        assert rows == 2 * down.columns
        room = Workspace()
        inner = room.take(4 * rows)
        integers, x = _prepare(gate_up[0], Operand("x"), dtype, isa, room)
        within, hidden = prepare(
            down.form, inner, "gated", isa or fastest(), room, columns=down.columns
        )
        last = _products([down], hidden, Operand("out"), isa)
        stages = [[integers], _products(gate_up, x, inner, isa), [within], last]
        super().__init__(stages, room, [*gate_up, down])
        self._rows = down.rows

    def __call__(self, x: Tensor, *, spared: int = 0) -> Tensor:
        """Return what it makes of one token in float32, contiguous [1, D] -> [1, D]."""
        out = empty_floats(1, self._rows)
        self._run({"x": x, "out": out}, spared)
        return out


class Projection(_Plan):
    """Queries, keys and values of one token, turned by its position.

    Parameters
    ----------
    matrices
        Those of queries, keys and values, which take the same activations.
    size
        d, which `can_rotate` takes.
    scaling
        What scores are multiplied by.
    dtype
        Of activations, keys and values: float32 or bfloat16.
    """

    def __init__(
        self,
        matrices: Sequence[Packed],
        *,
        size: int,
        scaling: float,
        dtype: torch.dtype,
        isa: str | None = None,
    ) -> None:
        heads, groups, _ = (matrix.rows // size for matrix in matrices)
        assert [matrix.rows for matrix in matrices] == [heads * size, *[groups * size] * 2]
        room = Workspace()
        projected = room.take(4 * (heads + 2 * groups) * size)
        integers, x = _prepare(matrices[0], Operand("x"), dtype, isa, room)
        turned = rotation(
            heads,
            groups,
            size,
            isa or fastest(),
            x=projected,
            scaling=scaling,
            halves=dtype is torch.bfloat16,
        )
        stages = [[integers], _products(matrices, x, projected, isa), [turned]]
        super().__init__(stages, room, matrices)
        self._heads, self._groups, self._size, self._dtype = heads, groups, size, dtype

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, spared: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries for `AttendedProduct` [H, d], keys and values [G, d], of [1, D] and [d].

        All that is given is contiguous.
        """
        query = empty_floats(self._heads, self._size)
        key, value = (
            torch.empty(self._groups, self._size, dtype=self._dtype, device="cpu") for _ in range(2)
        )
        parts = {"x": x, "cos": cos, "sin": sin, "query": query, "key": key, "value": value}
        self._run(parts, spared)
        return query, key, value


class AttendedProduct(_Plan):
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
        assert matrix.columns == heads * size
        assert heads % groups == 0
        room = Workspace()
        found = room.take(4 * heads * size)
        attends = attention(
            groups,
            heads // groups,
            size,
            isa or fastest(),
            query=Operand("query"),
            out=found,
            halves=dtype is torch.bfloat16,
        )
        integers, x = _prepare(matrix, found, torch.float32, isa, room)
        stages = [[attends], [integers], _products([matrix], x, Operand("out"), isa)]
        super().__init__(stages, room, [matrix])
        self._heads, self._rows = heads, matrix.rows

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, spared: int = 0) -> Tensor:
        """Return it in float32, [1, N], of queries from `Projection` and two [G, T, d]."""
        context = of_context(key, value)
        scores = empty_floats(self._heads, context["room_tokens"])
        out = empty_floats(1, self._rows)
        self._run({"query": query, "scores": scores, "out": out}, spared, **context)
        return out


def _prepare(
    matrix: Packed, x: Operand, dtype: torch.dtype, isa: str | None, room: Workspace
) -> tuple[Step, Prepared]:
    """Return what makes integers of a token's activations, and these."""
    return prepare(matrix.form, x, source_of(dtype), isa or fastest(), room, columns=matrix.columns)


def _products(matrices: Sequence[Packed], x: Prepared, out: Operand, isa: str | None) -> list[Step]:
    """Return what writes one token's products with matrices into out, side by side."""
    steps = []
    for matrix in matrices:
        assert matrix.columns == x.columns
        steps.append(product(matrix, x, out, isa or fastest_to_multiply(matrix.form, 1)))
        out += 4 * matrix.rows
    return steps
