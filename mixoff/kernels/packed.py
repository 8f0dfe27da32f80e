"""Kernels that multiply by packed weights without dequantizing whole matrices."""

from collections.abc import Sequence
from typing import Generic

import torch
from torch import Tensor

from mixoff.kernels.base import (
    CPUOperations,
    GatedActivation,
    Kernels,
    Matrix,
    OneTokenOperations,
    PackedOperations,
    TorchKernels,
)
from mixoff.kernels.layout import Packed, PackedAxis0
from mixoff.kernels.plans import Plans, as_packed, packed_kind
from mixoff.quantization import PackedMatrix, Quantization, QuantizedTensor, Shape


class PackedKernels(Kernels, Generic[Matrix]):
    """Multiplies straight from packed weights for few tokens, and dequantizes some rows for many.

    Plain torch computes the products that have no kernels, or whose tensors lie on another device.
    For few tokens, a CPU's kernels leave out `reserved_threads`.

    Parameters
    ----------
    operations
        The module `mixoff.kernels.cpu.operations`, which needs llvmlite, or
        `mixoff.kernels.triton.operations`, which needs Triton and has no kernels for groups along
        the outputs.
    device
        The type of device that tensors have to be on: "cpu" or "cuda".
    """

    def __init__(self, operations: PackedOperations[Matrix], device: str) -> None:
        self._multiply = operations.multiply  # a module can't be copied with its model
        self._multiply_dequantized = operations.multiply_dequantized
        self._most_tokens = operations.most_tokens
        self._dtypes = operations.DTYPES
        self._matrices = operations.MATRICES
        self._scratch_nbytes = operations.scratch_nbytes
        self._device = device
        self._torch = TorchKernels()

    def piece(self, matrix: QuantizedTensor, x: Tensor) -> Tensor:
        """Return x W^T, [..., K] -> [..., N], in x's type."""
        packed = as_packed(matrix) if self._takes(x, matrix) else None
        if not isinstance(packed, self._matrices) or packed.codes.device != x.device:
            return self._torch.piece(matrix, x)
        rows = x.reshape(-1, x.shape[-1])  # [T, K]
        if rows.shape[0] <= self._most_tokens(x.dtype, type(packed)):
            y = self._multiply(packed, rows, reserved_threads=self.reserved_threads())
            y = _in_type(y, x.dtype)
        else:
            y = self._multiply_dequantized(packed, rows)
        return y.reshape(*x.shape[:-1], matrix.shape[0])

    def _takes(self, x: Tensor, matrix: PackedMatrix) -> bool:
        """Return whether activations have a type, device and width for kernels.

        A wrong width is left to torch, whose error names the shapes.
        """
        supported = x.device.type == self._device and x.dtype in self._dtypes
        return supported and x.shape[-1] == matrix.shape[1]

    def workspace_nbytes(self, stored: Quantization, shape: Shape, dtype: torch.dtype) -> int:
        """Return the bytes of the rows that are dequantized at a time."""
        if dtype not in self._dtypes or packed_kind(stored, shape) not in self._matrices:
            return self._torch.workspace_nbytes(stored, shape, dtype)
        row = shape[1] * 4  # rows may be float32 for any type
        return min(self._scratch_nbytes(row), shape[0] * row)


class CPUKernels(PackedKernels[Packed | PackedAxis0]):
    """Kernels compiled for this CPU, with plans for several matrices and one token.

    A plan computes all steps between its matrices without returning to Python.

    Parameters
    ----------
    operations, one_token
        The modules `mixoff.kernels.cpu.operations` and `mixoff.kernels.cpu.one_token`, which need
        llvmlite.
    """

    def __init__(self, operations: CPUOperations, one_token: OneTokenOperations) -> None:
        super().__init__(operations, "cpu")
        self._attends, self._can_rotate = operations.attends, one_token.can_rotate
        self._feed_forward_plans = Plans(one_token.plan_feed_forward)
        self._projection_plans = Plans(one_token.plan_projection)
        self._attended_product_plans = Plans(one_token.plan_attended_product)

    def feed_forward(
        self, gate_up: PackedMatrix, down: PackedMatrix, x: Tensor, gate: GatedActivation
    ) -> Tensor:
        """Return an expert's output for tokens, [T, D] -> [T, D], in x's type."""
        if x.shape[0] == 1 and gate.is_silu and self._takes(x, gate_up):
            plan = self._feed_forward_plans((gate_up, down), x.dtype)
            if plan is not None:
                y = plan(x.contiguous(), reserved_threads=self.reserved_threads())
                return _in_type(y, x.dtype)
        return super().feed_forward(gate_up, down, x, gate)

    def queries(
        self, matrices: Sequence[PackedMatrix], x: Tensor, cos: Tensor, sin: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return one token's queries [H, d] for `attended`, its keys and its values [G, d].

        None if there are no kernels for these matrices and activations.

        Parameters
        ----------
        matrices
            The matrices of queries, keys and values.
        x, cos, sin
            [1, D], and [d] of the token's position.
        scaling
            The factor of attention scores.
        """
        size, dtype = cos.shape[0], x.dtype
        same_type = cos.dtype is sin.dtype is dtype
        if not (same_type and self._can_rotate(size) and self._takes(x, matrices[0])):
            return None
        plan = self._projection_plans(matrices, size, scaling, dtype)
        if plan is None:
            return None
        reserved = self.reserved_threads()
        return plan(x.contiguous(), cos.contiguous(), sin.contiguous(), reserved_threads=reserved)

    def attended(
        self, query: Tensor, key: Tensor, value: Tensor, matrix: PackedMatrix
    ) -> Tensor | None:
        """Return the product of a matrix with one token's attention in float32, [1, N].

        None if there are no kernels for this matrix, these keys or these values.

        Parameters
        ----------
        query, key, value
            [H, d] from `queries`; two [G, T, d].
        """
        if not self._attends(key, value):
            return None
        (heads, size), groups = query.shape, key.shape[0]
        plan = self._attended_product_plans((matrix,), heads, groups, size, key.dtype)
        if plan is None:
            return None
        return plan(query, key, value, reserved_threads=self.reserved_threads())


def _in_type(y: Tensor, dtype: torch.dtype) -> Tensor:
    return y if y.dtype is dtype else y.to(dtype)  # `to` takes 0.7 us where it does nothing
