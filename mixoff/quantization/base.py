"""The base class of quantization methods, and quantized matrices. Knows no single method.

Letters: N rows (outputs), K columns (inputs).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

Shape = tuple[int, ...]
Parts = dict[str, Tensor]
PartSpecs = dict[str, tuple[torch.dtype, Shape]]


class Quantization(ABC):
    """A storage method of matrices: the tensors that store one, and how to restore it from them."""

    method: ClassVar[str]  # its name in a checkpoint's settings
    joins_rows: ClassVar[bool] = True  # whether several matrices can be stored as one of all rows

    @abstractmethod
    def part_specs(self, shape: Shape) -> PartSpecs:
        """Return dtype and shape of each tensor that stores an [N, K] matrix, in storage order.

        Raises
        ------
        ConfigError
            If this method can't store a matrix of that shape.
        """

    @abstractmethod
    def quantize(self, weight: Tensor) -> Parts:
        """Return the tensors that store an [N, K] matrix."""

    @abstractmethod
    def dequantize(self, parts: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Return the [N, K] matrix that the tensors store."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for JSON; `quantization_from_dict` is the inverse."""
        settings: dict[str, Any] = asdict(self)  # type: ignore[call-overload]  # of dataclasses
        return {"method": self.method, **settings}

    def nbits_per_weight(self, shape: Shape) -> float:
        """Return the bits that one weight of an [N, K] matrix takes, scales and zeros included."""
        specs = self.part_specs(shape).values()
        nbytes = sum(math.prod(part) * dtype.itemsize for dtype, part in specs)
        return 8 * nbytes / (shape[0] * shape[1])


@dataclass(frozen=True)
class QuantizedTensor:
    """An [N, K] matrix in its stored form.

    Parameters
    ----------
    quantization
        The method that stores it.
    shape
        (N, K): outputs and inputs.
    parts
        The tensors that `quantization.part_specs(shape)` names.
    """

    quantization: Quantization
    shape: Shape
    parts: Mapping[str, Tensor]

    @classmethod
    def quantize(cls, weight: Tensor, quantization: Quantization) -> "QuantizedTensor":
        """Quantize an [N, K] floating point matrix."""
        return cls(quantization, tuple(weight.shape), quantization.quantize(weight))

    @property
    def pieces(self) -> tuple["QuantizedTensor", ...]:
        """This matrix alone, since it is stored in one piece."""
        return (self,)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the [N, K] matrix in a floating point type."""
        return self.quantization.dequantize(self.parts, self.shape, dtype)

    @property
    def nbytes(self) -> int:
        """The bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())


@dataclass(frozen=True)
class StackedRows:
    """Quantized matrices [N_i, K] as one matrix [N, K] of all their rows.

    Parameters
    ----------
    pieces
        The matrices, in the order of their rows.
    """

    pieces: tuple[QuantizedTensor, ...]

    @property
    def shape(self) -> Shape:
        """(N, K): outputs and inputs."""
        return sum(piece.shape[0] for piece in self.pieces), self.pieces[0].shape[1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the [N, K] matrix in a floating point type."""
        return torch.cat([piece.dequantize(dtype) for piece in self.pieces])

    @property
    def nbytes(self) -> int:
        """The bytes of all parts of all pieces."""
        return sum(piece.nbytes for piece in self.pieces)


PackedMatrix = QuantizedTensor | StackedRows
