"""The interface of kernels, and the operations that code compiled for a device offers them.

Knows quantized matrices; nothing of how they are multiplied on a certain device.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from mixoff.kernels.layout import Located, Packed, PackedAxis0
from mixoff.quantization import PackedMatrix, Quantization, QuantizedTensor, Shape, Unquantized

Matrix = TypeVar("Matrix", bound=Packed | PackedAxis0)


@dataclass(frozen=True)
class GatedActivation:
    """The activation between an expert's matrices.

    Parameters
    ----------
    apply
        Returns the input of the down projection for the outputs of gate and up,
        [T, 2 inner] -> [T, inner].
    is_silu
        Whether it is silu of the first half times the second half.
    """

    apply: Callable[[Tensor], Tensor]
    is_silu: bool


class Kernels(ABC):
    """Products with packed matrices on one kind of device.

    `reserved_threads` returns the number of threads that are left to other work: 0 until it is set.
    """

    reserved_threads: Callable[[], int] = staticmethod(lambda: 0)

    def matmul(self, matrix: PackedMatrix, x: Tensor) -> Tensor:
        """Return x W^T, [..., K] -> [..., N], in x's type."""
        pieces = [self.piece(piece, x) for piece in matrix.pieces]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def feed_forward(
        self, gate_up: PackedMatrix, down: PackedMatrix, x: Tensor, gate: GatedActivation
    ) -> Tensor:
        """Return an expert's output for tokens, [T, D] -> [T, D], in x's type."""
        return self.matmul(down, gate.apply(self.matmul(gate_up, x)))

    @abstractmethod
    def piece(self, matrix: QuantizedTensor, x: Tensor) -> Tensor:
        """Return x W^T for a matrix that is stored in one piece, [..., K] -> [..., N]."""

    @abstractmethod
    def workspace_nbytes(self, stored: Quantization, shape: Shape, dtype: torch.dtype) -> int:
        """Return the bytes that a product of many tokens with an [N, K] matrix needs.

        Tokens, matrix and result are not counted.
        """


class TorchKernels(Kernels):
    """Dequantizes a matrix and multiplies by it: right for any quantization on any device."""

    def workspace_nbytes(self, stored: Quantization, shape: Shape, dtype: torch.dtype) -> int:
        """Return the bytes that dequantizing the whole matrix needs."""
        weights = math.prod(shape)
        if isinstance(stored, Unquantized):
            return 0 if getattr(torch, stored.dtype) is dtype else weights * dtype.itemsize
        # float32 codes, unpacked plane by plane, and a copy in another type
        return weights * 5 + (0 if dtype is torch.float32 else weights * dtype.itemsize)

    def piece(self, matrix: QuantizedTensor, x: Tensor) -> Tensor:
        """Return x W^T, [..., K] -> [..., N], in x's type."""
        return torch.nn.functional.linear(x, matrix.dequantize(x.dtype))


# ---- what modules with compiled code have; mypy checks that they do where they are imported


class PackedOperations(Protocol[Matrix]):
    """Products with packed matrices: `kernels.cpu.operations` and `kernels.triton.operations`."""

    @property
    def DTYPES(self) -> tuple[torch.dtype, ...]:
        """Types of activations."""

    @property
    def MATRICES(self) -> tuple[type[Matrix], ...]:
        """Types of matrices."""

    def most_tokens(self, dtype: torch.dtype, kind: type[Matrix], /) -> int:
        """Return up to how many tokens `multiply` is used; more are multiplied dequantized."""

    def scratch_nbytes(self, row_nbytes: int, /) -> int:
        """Return the bytes of dequantized rows that `multiply_dequantized` has at a time."""

    def multiply(self, matrix: Matrix, x: Tensor, /, *, reserved_threads: int = 0) -> Tensor:
        """Return x W^T straight from packed weights, [T, K] -> [T, N]."""

    def multiply_dequantized(self, matrix: Matrix, x: Tensor, /) -> Tensor:
        """Return x W^T in x's type, [T, K] -> [T, N], dequantizing some rows at a time."""


class AttentionOperations(Protocol):
    """One token's attention without matrices: `kernels.cpu.operations`."""

    def attends(self, key: Tensor, value: Tensor, /) -> bool:
        """Return whether there is a kernel for such keys and values [G, T, d]."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, /, *, scaling: float) -> Tensor:
        """Return softmax(scaling * q K^T) V in float32, [G, h, d] and two [G, T, d]."""


class CPUOperations(PackedOperations[Packed | PackedAxis0], AttentionOperations, Protocol):
    """What `CPUKernels` need of `kernels.cpu.operations`."""


class RouterNormOperations(Protocol):
    """One token's router and norms: `kernels.cpu.router_norm`."""

    def takes_whole(self, x: Tensor, weight: Tensor, /) -> bool:
        """Return whether there are kernels for a token [..., D] and a weight [..., D]."""

    def route(self, x: Tensor, weight: Tensor, top_k: int, /) -> tuple[Tensor, Tensor, Tensor]:
        """Return one token's router logits [1, E], and the shares and experts chosen [1, k]."""

    def normalize(self, x: Tensor, weight: Tensor, epsilon: float, /) -> Tensor:
        """Return RMSNorm of one token, [..., D]."""


class FeedForwardPlan(Protocol):
    """An expert's computation for one token."""

    def __call__(self, x: Tensor, /, *, reserved_threads: int) -> Tensor:
        """Return its output in float32, contiguous [1, D] -> [1, D]."""


class ProjectionPlan(Protocol):
    """The projection of one token to queries, keys and values."""

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, /, *, reserved_threads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [H, d], keys and values [G, d], of contiguous [1, D] and [d]."""


class AttendedProductPlan(Protocol):
    """One token's attention and its product with a matrix."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, /, *, reserved_threads: int
    ) -> Tensor:
        """Return the product in float32, [1, N], of [H, d] and two [G, T, d]."""


class OneTokenOperations(Protocol):
    """Plans for several matrices and one token: `kernels.cpu.one_token`.

    They are None if a matrix has more pieces than its kernel takes, or pieces that are multiplied
    by the same activations don't take them in one layout.
    """

    def can_rotate(self, size: int, /) -> bool:
        """Return whether rotary embedding can be applied to heads of a size."""

    def plan_feed_forward(self, matrices: Located, dtype: torch.dtype, /) -> FeedForwardPlan | None:
        """Return the plan for an expert's two matrices."""

    def plan_projection(
        self, matrices: Located, size: int, scaling: float, dtype: torch.dtype, /
    ) -> ProjectionPlan | None:
        """Return the plan for the matrices of queries, keys and values."""

    def plan_attended_product(
        self, matrices: Located, heads: int, groups: int, size: int, dtype: torch.dtype, /
    ) -> AttendedProductPlan | None:
        """Return the plan for attention and its product with one matrix."""
