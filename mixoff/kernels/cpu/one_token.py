"""Plans of several matrices and one token, whose steps run without returning to Python.

Between steps, weights have passed through the caches, and the interpreter's own code and data would
have to be read from memory again.
D numbers of a token; G groups of h heads of size d, H = G h.

A plan holds addresses of its matrices' parts, and no tensors. It is valid as long as the matrices
lie there; the caller holds them while it runs (`mixoff.kernels.plans.Plans`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixoff.kernels.cpu.codegen.floats import PIECE
from mixoff.kernels.cpu.compile import sequence_code
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
from mixoff.kernels.layout import Located, PackedLocation


def can_rotate(size: int) -> bool:
    """Return whether rotary embedding can be applied to heads of a size."""
    return size % (2 * PIECE) == 0  # each half is whole vectors


def plan_feed_forward(matrices: Located, dtype: torch.dtype) -> "FeedForward | None":
    """Return the plan for an expert's two matrices, the second in one piece."""
    gate_up, down = matrices
    fits = len(down) == 1 and _take_same_activations(gate_up)
    return FeedForward(gate_up, down[0], dtype) if fits else None


def plan_projection(
    matrices: Located, size: int, scaling: float, dtype: torch.dtype
) -> "Projection | None":
    """Return the plan for the matrices of queries, keys and values, each in one piece."""
    pieces = [piece for matrix in matrices for piece in matrix]
    fits = len(pieces) == len(matrices) and _take_same_activations(pieces)
    return Projection(pieces, size=size, scaling=scaling, dtype=dtype) if fits else None


def plan_attended_product(
    matrices: Located, heads: int, groups: int, size: int, dtype: torch.dtype
) -> "AttendedProduct | None":
    """Return the plan for attention and its product with one matrix in one piece."""
    ((first, *rest),) = matrices
    if rest:
        return None
    return AttendedProduct(first, heads=heads, groups=groups, size=size, dtype=dtype)


def _take_same_activations(pieces: Sequence[PackedLocation]) -> bool:
    """Return whether kernels take activations for all pieces in one layout of integers."""
    return len({(piece.form.unit, piece.form.lane) for piece in pieces}) == 1


class _Plan:
    """Stages of steps, and the size of the workspace that they need."""

    def __init__(self, stages: Sequence[Sequence[Step]], workspace: Workspace) -> None:
        self._work, self._workspace_nbytes = Work(stages, sequence_code()), workspace.nbytes

    def _run(self, tensors: dict[str, Tensor], reserved_threads: int, **numbers: int) -> None:
        """Run all stages with contiguous tensors, and numbers, as operands."""
        # One for each run, since several threads may run a plan at once.
        workspace = empty_bytes(self._workspace_nbytes)
        numbers["workspace"] = workspace.data_ptr()
        for name, tensor in tensors.items():
            numbers[name] = tensor.data_ptr()
        self._work.run(numbers, reserved_threads=reserved_threads)


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
        gate_up: Sequence[PackedLocation],
        down: PackedLocation,
        dtype: torch.dtype,
        isa: str | None = None,
    ) -> None:
        rows = sum(piece.rows for piece in gate_up)
        assert rows == 2 * down.columns
        workspace = Workspace()
        inner = workspace.take(4 * rows)
        integers, x = _prepare(gate_up[0], Operand("x"), dtype, isa, workspace)
        gated, hidden = prepare(
            down.form, inner, "gated", isa or fastest(), workspace, columns=down.columns
        )
        last = _products([down], hidden, Operand("out"), isa)
        stages = [[integers], _products(gate_up, x, inner, isa), [gated], last]
        super().__init__(stages, workspace)
        self._rows = down.rows

    def __call__(self, x: Tensor, *, reserved_threads: int = 0) -> Tensor:
        """Return the expert's output for one token in float32, contiguous [1, D] -> [1, D]."""
        out = empty_floats(1, self._rows)
        self._run({"x": x, "out": out}, reserved_threads)
        return out


class Projection(_Plan):
    """Queries, keys and values of one token, with rotary embedding applied.

    Parameters
    ----------
    matrices
        The matrices of queries, keys and values, which take the same activations.
    size
        d, which `can_rotate` accepts.
    scaling
        The factor of attention scores.
    dtype
        Of activations, keys and values: float32 or bfloat16.
    """

    def __init__(
        self,
        matrices: Sequence[PackedLocation],
        *,
        size: int,
        scaling: float,
        dtype: torch.dtype,
        isa: str | None = None,
    ) -> None:
        heads, groups, _ = (matrix.rows // size for matrix in matrices)
        assert [matrix.rows for matrix in matrices] == [heads * size, *[groups * size] * 2]
        workspace = Workspace()
        projected = workspace.take(4 * (heads + 2 * groups) * size)
        integers, x = _prepare(matrices[0], Operand("x"), dtype, isa, workspace)
        rotated = rotation(
            heads,
            groups,
            size,
            isa or fastest(),
            x=projected,
            scaling=scaling,
            bfloat16=dtype is torch.bfloat16,
        )
        stages = [[integers], _products(matrices, x, projected, isa), [rotated]]
        super().__init__(stages, workspace)
        self._heads, self._groups, self._size, self._dtype = heads, groups, size, dtype

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, reserved_threads: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries for `AttendedProduct` [H, d], keys and values [G, d], of [1, D] and [d].

        All arguments are contiguous.
        """
        query = empty_floats(self._heads, self._size)
        key, value = (
            torch.empty(self._groups, self._size, dtype=self._dtype, device="cpu") for _ in range(2)
        )
        tensors = {"x": x, "cos": cos, "sin": sin, "query": query, "key": key, "value": value}
        self._run(tensors, reserved_threads)
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
        matrix: PackedLocation,
        *,
        heads: int,
        groups: int,
        size: int,
        dtype: torch.dtype,
        isa: str | None = None,
    ) -> None:
        assert matrix.columns == heads * size
        assert heads % groups == 0
        workspace = Workspace()
        attended = workspace.take(4 * heads * size)
        attends = attention(
            groups,
            heads // groups,
            size,
            isa or fastest(),
            query=Operand("query"),
            out=attended,
            bfloat16=dtype is torch.bfloat16,
        )
        integers, x = _prepare(matrix, attended, torch.float32, isa, workspace)
        stages = [[attends], [integers], _products([matrix], x, Operand("out"), isa)]
        super().__init__(stages, workspace)
        self._heads, self._rows = heads, matrix.rows

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, reserved_threads: int = 0
    ) -> Tensor:
        """Return the product in float32, [1, N], for queries of `Projection` and two [G, T, d]."""
        context = of_context(key, value)
        scores = empty_floats(self._heads, context["padded_tokens"])
        out = empty_floats(1, self._rows)
        self._run({"query": query, "scores": scores, "out": out}, reserved_threads, **context)
        return out


def _prepare(
    matrix: PackedLocation, x: Operand, dtype: torch.dtype, isa: str | None, workspace: Workspace
) -> tuple[Step, Prepared]:
    """Return the step that makes integers of a token's activations, and the integers."""
    source = source_of(dtype)
    return prepare(matrix.form, x, source, isa or fastest(), workspace, columns=matrix.columns)


def _products(
    matrices: Sequence[PackedLocation], x: Prepared, out: Operand, isa: str | None
) -> list[Step]:
    """Return the steps that write one token's products with matrices into out, side by side."""
    steps = []
    for matrix in matrices:
        assert matrix.columns == x.columns
        steps.append(product(matrix, x, out, isa or fastest_to_multiply(matrix.form, 1)))
        out += 4 * matrix.rows
    return steps
