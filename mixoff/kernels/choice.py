"""Who multiplies by packed matrices: plain torch, or code compiled for this CPU or GPU."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mixoff.errors import ConfigError
from mixoff.kernels.layout import CodeForm, Form, Packed, PackedAxis0
from mixoff.quantization import (
    HQQ,
    HQQAxis0,
    PackedMatrix,
    Quantization,
    QuantizedTensor,
    Shape,
    Unquantized,
)

KERNELS = ("auto", "cpu", "torch", "triton")

_FASTEST = {"cpu": "cpu", "cuda": "triton"}
_LEAST_CAPABILITY = (7, 0)  # of what Triton compiles for

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


class PackedKernels(Kernels):
    """Multiplies straight from packed weights for few tokens, and dequantizes some rows for many.

    What it has no kernels for, or lies on another device, plain torch computes. For few tokens a
    CPU's kernels leave the cores that are `busy` alone.

    Parameters
    ----------
    operations
        The module `mixoff.kernels.cpu`, which needs llvmlite, or `mixoff.kernels.cuda`, which needs
        Triton and has nothing for groups along the outputs.
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
        here = x.device.type == self._device and x.dtype in self._dtypes
        packed = as_packed(matrix) if here else None
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

    def workspace_nbytes(self, stored: Quantization, shape: Shape, dtype: torch.dtype) -> int:
        """Return the bytes of the rows that are dequantized at a time."""
        if dtype not in self._dtypes or _packed_kind(stored, shape) not in self._matrices:
            return self._torch.workspace_nbytes(stored, shape, dtype)
        row = shape[1] * 4  # float32 for any type, it may be
        return min(self._scratch_nbytes(row), shape[0] * row)


def _packed_kind(stored: Quantization, shape: Shape) -> type | None:
    """Return how kernels take a matrix; None if there are none for it."""
    if isinstance(stored, HQQAxis0):  # not of words, nor with groups that cut columns
        return None if stored.nbits == 3 or shape[0] % stored.group_size else PackedAxis0
    if isinstance(stored, HQQ) and _form(stored).is_supported:
        return Packed
    return None


@cache
def _form(stored: HQQ) -> Form:
    return Form(stored.nbits, stored.group_size, stored.scale_nbits == 8)


def as_packed(matrix: QuantizedTensor) -> Packed | PackedAxis0 | None:
    """Return a matrix as kernels take it, made once; None if there are none for it."""
    if "packed" not in matrix.kept:
        matrix.kept["packed"] = _as_packed(matrix)
    packed: Packed | PackedAxis0 | None = matrix.kept["packed"]
    return packed


def _as_packed(matrix: QuantizedTensor) -> Packed | PackedAxis0 | None:
    stored, parts = matrix.quantization, matrix.parts
    rows, columns = matrix.shape
    if _packed_kind(stored, matrix.shape) is None:
        return None
    if isinstance(stored, HQQAxis0):
        return _as_packed_axis0(stored, matrix)
    assert isinstance(stored, HQQ)
    scales = (parts["scale"], parts["zero"], parts.get("pairs"))
    return Packed(_form(stored), rows, columns, parts["W_q"], *scales)


def _as_packed_axis0(stored: HQQAxis0, matrix: QuantizedTensor) -> PackedAxis0:
    rows, columns = matrix.shape
    names = (
        "W_q",
        "meta.scale_q",
        "meta.zero_q",
        "meta.meta_scale.scale",
        "meta.meta_scale.zero",
        "meta.meta_zero.scale",
        "meta.meta_zero.zero",
    )
    parts = [matrix.parts[name] for name in names]
    return PackedAxis0(CodeForm(stored.nbits), stored.group_size, rows, columns, *parts)


def kernels_named(name: str, device: torch.device | str = "cpu") -> Kernels:
    """Return who multiplies: "torch", "cpu", "triton", or "auto" for what is fastest on a device.

    Raises
    ------
    ConfigError
        If there is none of that name, or it can't be had.
    """
    device = torch.device(device)
    if name not in KERNELS:
        raise ConfigError(f"kernels={name!r}: give one of {', '.join(KERNELS)}.")
    chosen = _FASTEST.get(device.type, "torch") if name == "auto" else name
    if chosen == "torch":
        return TorchKernels()
    try:
        return _compiled(chosen, device)
    except _Unusable as error:
        if name == "auto":
            _log.log(error.level, "%s: plain torch multiplies.", error)
            return TorchKernels()
        raise ConfigError(f"kernels={name!r}: {error}: {error.way_out}.") from error


def kernels_planned(device: torch.device) -> Kernels:
    """Return who would multiply on a device, which needn't be here: then plain torch."""
    here = device.type == "cpu" or torch.cuda.is_available()
    return kernels_named("auto", device) if here else TorchKernels()


def kernels_beside(name: str) -> Kernels:
    """Return who multiplies on the CPU beside a device that has the kernels of a name."""
    return kernels_named("torch" if name == "torch" else "auto", "cpu")


class _Unusable(Exception):
    """Why kernels can't be had, how much that matters, and what to do about it."""

    def __init__(self, reason: str, way_out: str, *, level: int = logging.INFO) -> None:
        super().__init__(reason)
        self.way_out = way_out
        self.level = level


def _compiled(name: str, device: torch.device) -> Kernels:
    """Return the kernels "cpu" or "triton"."""
    if name == "triton":
        return _triton_kernels(device)
    try:
        return PackedKernels(import_module("mixoff.kernels.cpu"), "cpu")
    except ImportError as error:  # llvmlite is missing, or too old
        reason = f"llvmlite can't be used ({error})"
        raise _Unusable(reason, "pip install mixoff[cpu]") from error


def _triton_kernels(device: torch.device) -> Kernels:
    try:
        operations = import_module("mixoff.kernels.cuda")
    except ImportError as error:
        reason = f"triton can't be imported ({error})"
        raise _Unusable(reason, "pip install mixoff[triton]", level=logging.WARNING) from error
    if operations.interpreted():
        return PackedKernels(operations, device.type)
    if device.type != "cuda":
        raise _Unusable(f"Triton's kernels run on GPUs, not on {device}", "give device='cuda'")
    capability = torch.cuda.get_device_capability(device)
    failure = None
    if capability < _LEAST_CAPABILITY:
        failure = "compute capability {}.{} is below {}.{}".format(*capability, *_LEAST_CAPABILITY)
    failure = failure or operations.failure(device)
    if failure:
        reason = f"Triton can't be used on {device} ({failure})"
        raise _Unusable(reason, "give kernels='torch'", level=logging.WARNING)
    return PackedKernels(operations, device.type)
