"""Who multiplies by packed matrices: plain torch, or code compiled for this CPU."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mixoff.errors import ConfigError
from mixoff.kernels.layout import Form, Packed
from mixoff.quantization import HQQ, PackedMatrix, QuantizedTensor

KERNELS = ("auto", "cpu", "torch")

_MOST_TOKENS = 10  # from here on dequantizing once is faster than multiplying token by token
_FLOATS = (torch.float32, torch.bfloat16)

_log = logging.getLogger(__name__)


class Kernels(ABC):
    """Multiplies by packed matrices.

    `busy` tells how many cores something else works on, which is nothing until it is set.
    """

    busy: Callable[[], int] = staticmethod(lambda: 0)

    def matmul(self, matrix: PackedMatrix, x: Tensor) -> Tensor:
        """Return x W^T, [..., K] -> [..., N], in x's type."""
        pieces = [self.piece(piece, x) for piece in matrix.pieces]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    @abstractmethod
    def piece(self, matrix: QuantizedTensor, x: Tensor) -> Tensor:
        """Return x W^T of a matrix that is stored in one piece."""


class TorchKernels(Kernels):
    """Dequantizes a matrix and multiplies by it: right for any quantization on any device."""

    def piece(self, matrix: QuantizedTensor, x: Tensor) -> Tensor:
        """Return x W^T, [..., K] -> [..., N], in x's type."""
        return torch.nn.functional.linear(x, matrix.dequantize(x.dtype))


class CpuKernels(Kernels):
    """Multiplies straight from packed weights for few tokens, and dequantizes a few rows for many.

    What it has no kernels for, plain torch computes. For few tokens it leaves the cores that are
    `busy` alone.

    Parameters
    ----------
    operations
        The module `mixoff.kernels.cpu`, which needs llvmlite.
    """

    def __init__(self, operations: Any) -> None:
        self._multiply = operations.multiply  # a module can't be copied with its model
        self._multiply_dequantized = operations.multiply_dequantized
        self._torch = TorchKernels()

    def piece(self, matrix: QuantizedTensor, x: Tensor) -> Tensor:
        """Return x W^T, [..., K] -> [..., N], in x's type."""
        packed = as_packed(matrix) if x.device.type == "cpu" and x.dtype in _FLOATS else None
        if packed is None:
            return self._torch.piece(matrix, x)
        rows = x.reshape(-1, x.shape[-1])  # [T, K]
        if len(rows) <= _MOST_TOKENS:
            y: Tensor = self._multiply(packed, rows, spared=self.busy()).to(x.dtype)
        else:
            y = self._multiply_dequantized(packed, rows)
        return y.reshape(*x.shape[:-1], matrix.shape[0])


def as_packed(matrix: QuantizedTensor) -> Packed | None:
    """Return a matrix as kernels take it; None if there are none for it."""
    scheme, parts = matrix.quantization, matrix.parts
    if not isinstance(scheme, HQQ):
        return None
    form = Form(scheme.nbits, scheme.group_size, scheme.scale_nbits == 8)
    if not form.is_supported:
        return None
    rows, columns = matrix.shape
    scales = (parts["scale"], parts["zero"], parts.get("pairs"))
    return Packed(form, rows, columns, parts["W_q"], *scales)


def kernels_named(name: str, device: torch.device | str = "cpu") -> Kernels:
    """Return who multiplies: "torch", "cpu", or "auto" for what is fastest on a device.

    Raises
    ------
    ConfigError
        If there is none of that name, or "cpu" can't be had.
    """
    if name not in KERNELS:
        raise ConfigError(f"kernels={name!r}: give one of {', '.join(KERNELS)}.")
    if name == "torch" or (name == "auto" and torch.device(device).type != "cpu"):
        return TorchKernels()
    try:
        return CpuKernels(import_module("mixoff.kernels.cpu"))
    except ImportError as error:  # llvmlite is missing, or too old
        if name == "cpu":
            raise ConfigError(
                f"kernels='cpu': llvmlite can't be used ({error}): pip install mixoff[cpu]."
            ) from error
        _log.info("llvmlite can't be used (%s): plain torch multiplies.", error)
        return TorchKernels()
