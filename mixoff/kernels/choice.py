"""Who multiplies by packed matrices: plain torch, or code compiled for this CPU or GPU."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mixoff.errors import ConfigError
from mixoff.kernels.matrices import as_packed, packed_alike, packed_kind
from mixoff.quantization import (
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


@dataclass(frozen=True)
class Gate:
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
        self, gate_up: PackedMatrix, down: PackedMatrix, x: Tensor, gate: Gate
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
        packed = as_packed(matrix) if self._takes(x) else None
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

    def _takes(self, x: Tensor) -> bool:
        return x.device.type == self._device and x.dtype in self._dtypes

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
    operations
        The module `mixoff.kernels.cpu`, which needs llvmlite.
    """

    def __init__(self, operations: Any) -> None:
        super().__init__(operations, "cpu")
        self._feed_forward = operations.feed_forward
        self._project = operations.project
        self._attends = operations.attends
        self._attend_and_project = operations.attend_and_project

    def feed_forward(
        self, gate_up: PackedMatrix, down: PackedMatrix, x: Tensor, gate: Gate
    ) -> Tensor:
        """Return what an expert makes of tokens, [T, D] -> [T, D], in x's type."""
        if len(x) == 1 and gate.is_silu and self._takes(x):
            above, below = packed_alike(gate_up), packed_alike(down)
            if above is not None and below is not None and len(below) == 1:
                found: Tensor = self._feed_forward(above, *below, x, spared=self.busy())
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
        if not self._takes(x) or {cos.dtype, sin.dtype} != {x.dtype} or len(cos) % 32:
            return None
        packed = packed_alike(*matrices)
        if packed is None or len(packed) != len(matrices):
            return None
        given = (packed, x, cos, sin)
        found: tuple[Tensor, Tensor, Tensor]
        found = self._project(*given, scaling=scaling, spared=self.busy())
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
        packed = packed_alike(matrix)
        if packed is None or len(packed) != 1 or not self._attends(key, value):
            return None
        found: Tensor = self._attend_and_project(query, key, value, *packed, spared=self.busy())
        return found


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
        return CPUKernels(import_module("mixoff.kernels.cpu"))
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
