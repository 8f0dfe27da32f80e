"""Kernels that multiply by packed weights without dequantizing whole matrices."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mixoff.kernels.base import GatedActivation, Kernels, TorchKernels
from mixoff.kernels.plans import as_packed, packed_alike, packed_kind, planned
from mixoff.quantization import PackedMatrix, Quantization, QuantizedTensor, Shape


class PackedKernels(Kernels):
    """Multiplies straight from packed weights for few tokens, and dequantizes some rows for many.

    What it has no kernels for, or lies on another device, plain torch computes. For few tokens a
    CPU's kernels leave the cores that are `busy` alone.

    Parameters
    ----------
    operations
        The module `mixoff.kernels.cpu.operations`, which needs llvmlite, or
        `mixoff.kernels.triton.operations`, which needs Triton and has nothing for groups along the
        outputs.
    device
        Where tensors have to lie, as "cpu" or "cuda".
    """

    def __init__(self, operations: Any, device: str) -> None:
        self._multiply = operations.multiply  # a module can't be copied with its model
        self._multiply_dequantized = operations.multiply_dequantized
        self._most_tokens: Callable[[torch.dtype, type], int] = operations.most_tokens
        self._dtypes: tuple[torch.dtype, ...] = operations.DTYPES
        self._matrices: tuple[type, ...] = operations.MATRICES
        self._scratch_nbytes: Callable[[int], int] = operations.scratch_nbytes
        self._device = device
        self._torch = TorchKernels()

    def piece(self, matrix: QuantizedTensor, x: Tensor) -> Tensor:
        """Return x W^T, [..., K] -> [..., N], in x's type."""
        packed = as_packed(matrix) if self._takes(x, matrix) else None
        if packed is None or not isinstance(packed, self._matrices):
            return self._torch.piece(matrix, x)
        if packed.codes.device != x.device:
            return self._torch.piece(matrix, x)
        rows = x.reshape(-1, x.shape[-1])  # [T, K]
        if len(rows) <= self._most_tokens(x.dtype, type(packed)):
            spared = self.busy()
            given = {"spared": spared} if spared else {}
            y: Tensor = self._multiply(packed, rows, **given).to(x.dtype)
        else:
            y = self._multiply_dequantized(packed, rows)
        return y.reshape(*x.shape[:-1], matrix.shape[0])

    def _takes(self, x: Tensor, matrix: PackedMatrix) -> bool:
        here = x.device.type == self._device and x.dtype in self._dtypes
        return here and x.shape[-1] == matrix.shape[1]  # else torch says what is wrong

    def workspace_nbytes(self, stored: Quantization, shape: Shape, dtype: torch.dtype) -> int:
        """Return the bytes of the rows that are dequantized at a time."""
        if dtype not in self._dtypes or packed_kind(stored, shape) not in self._matrices:
            return self._torch.workspace_nbytes(stored, shape, dtype)
        row = shape[1] * 4  # float32 for any type, it may be
        return min(self._scratch_nbytes(row), shape[0] * row)


class CPUKernels(PackedKernels):
    """Compiled for this CPU: what one token needs of several matrices is done in one go.

    Parameters
    ----------
    operations, one_token
        The modules `mixoff.kernels.cpu.operations` and `mixoff.kernels.cpu.one_token`, which need
        llvmlite.
    """

    def __init__(self, operations: Any, one_token: Any) -> None:
        super().__init__(operations, "cpu")
        self._attends, self._turns = operations.attends, one_token.can_rotate
        self._plan_expert = one_token.FeedForward
        self._plan_queries = one_token.Projection
        self._plan_attended = one_token.AttendedProduct

    def feed_forward(
        self, gate_up: PackedMatrix, down: PackedMatrix, x: Tensor, gate: GatedActivation
    ) -> Tensor:
        """Return what an expert makes of tokens, [T, D] -> [T, D], in x's type."""
        if len(x) == 1 and gate.is_silu and self._takes(x, gate_up):

            def plan() -> Any:
                above, below = packed_alike(gate_up), packed_alike(down)
                if above is None or below is None or len(below) > 1:
                    return None
                return self._plan_expert(above, *below, x.dtype)

            if (work := planned("expert", (down, gate_up), x.dtype, plan)) is not None:
                found: Tensor = work(x.contiguous(), spared=self.busy())
                return found.to(x.dtype)
        return super().feed_forward(gate_up, down, x, gate)

    def queries(
        self, matrices: Sequence[PackedMatrix], x: Tensor, cos: Tensor, sin: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return one token's queries [H, d] for `attended`, its keys and its values [G, d].

        None if there are no kernels for that.

        Parameters
        ----------
        matrices
            Those of queries, keys and values.
        x, cos, sin
            [1, D], and [d] of the token's position.
        scaling
            What scores are multiplied by.
        """
        size, of_one_type = len(cos), cos.dtype is sin.dtype is x.dtype
        if not (of_one_type and self._turns(size) and self._takes(x, matrices[0])):
            return None

        def plan() -> Any:
            packed = packed_alike(*matrices)
            if packed is None or len(packed) != len(matrices):
                return None
            return self._plan_queries(packed, size=size, scaling=scaling, dtype=x.dtype)

        work = planned("queries", matrices, (size, scaling, x.dtype), plan)
        if work is None:
            return None
        given = (part.contiguous() for part in (x, cos, sin))
        found: tuple[Tensor, Tensor, Tensor] = work(*given, spared=self.busy())
        return found

    def attended(
        self, query: Tensor, key: Tensor, value: Tensor, matrix: PackedMatrix
    ) -> Tensor | None:
        """Return a matrix's product with one token's attention in float32, [1, N].

        None if there are no kernels for that.

        Parameters
        ----------
        query, key, value
            [H, d] from `queries`; two [G, T, d].
        """
        if not self._attends(key, value):
            return None
        (heads, size), groups = query.shape, len(key)

        def plan() -> Any:
            packed = packed_alike(matrix)
            if packed is None or len(packed) > 1:
                return None
            sizes = {"heads": heads, "groups": groups, "size": size}
            return self._plan_attended(*packed, **sizes, dtype=key.dtype)

        work = planned("attended", (matrix,), (heads, groups, size, key.dtype), plan)
        if work is None:
            return None
        found: Tensor = work(query, key, value, spared=self.busy())
        return found
