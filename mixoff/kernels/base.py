"""Who multiplies by packed matrices: plain torch, or code compiled for this CPU or GPU."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixoff.quantization import PackedMatrix, Quantization, QuantizedTensor, Shape, Unquantized


@dataclass(frozen=True)
class GatedActivation:
    """What stands between an expert's matrices.

    Parameters
    ----------
    apply
        Returns what down is multiplied by of what gate and up return, [T, 2 inner] -> [T, inner].
    is_silu
        Whether that is silu of the first half times the second.
    """

    apply: Callable[[Tensor], Tensor]
    is_silu: bool


class Kernels(ABC):
    """Multiplies by packed matrices.

    `busy` tells how many cores something else works on, which is nothing until it is set.
    """

    busy: Callable[[], int] = staticmethod(lambda: 0)

    def matmul(self, matrix: PackedMatrix, x: Tensor) -> Tensor:
        """Return x W^T, [..., K] -> [..., N], in x's type."""
        pieces = [self.piece(piece, x) for piece in matrix.pieces]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def feed_forward(
        self, gate_up: PackedMatrix, down: PackedMatrix, x: Tensor, gate: GatedActivation
    ) -> Tensor:
        """Return what an expert makes of tokens, [T, D] -> [T, D], in x's type."""
        return self.matmul(down, gate.apply(self.matmul(gate_up, x)))

    @abstractmethod
    def piece(self, matrix: QuantizedTensor, x: Tensor) -> Tensor:
        """Return x W^T of a matrix that is stored in one piece."""

    @abstractmethod
    def workspace_nbytes(self, stored: Quantization, shape: Shape, dtype: torch.dtype) -> int:
        """Return what multiplying many tokens by an [N, K] matrix takes besides them and x W^T."""


class TorchKernels(Kernels):
    """Dequantizes a matrix and multiplies by it: right for any quantization on any device."""

    def workspace_nbytes(self, stored: Quantization, shape: Shape, dtype: torch.dtype) -> int:
        """Return the bytes of a whole matrix that is being dequantized."""
        weights = math.prod(shape)
        if isinstance(stored, Unquantized):
            return 0 if getattr(torch, stored.dtype) is dtype else weights * dtype.itemsize
        # float32 codes, unpacked plane by plane, and a copy in another type
        return weights * 5 + (0 if dtype is torch.float32 else weights * dtype.itemsize)

    def piece(self, matrix: QuantizedTensor, x: Tensor) -> Tensor:
        """Return x W^T, [..., K] -> [..., N], in x's type."""
        return torch.nn.functional.linear(x, matrix.dequantize(x.dtype))
