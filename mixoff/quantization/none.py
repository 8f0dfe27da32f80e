"""The method that stores matrices unquantized."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mixoff.errors import ConfigError
from mixoff.quantization.base import Parts, PartSpecs, Quantization, Shape


@dataclass(frozen=True)
class Unquantized(Quantization):
    """No quantization: the matrix in a floating point type, float32, float16 or bfloat16."""

    method = "none"
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise ConfigError(f"dtype={self.dtype!r}: give float32, float16 or bfloat16.")

    def part_specs(self, shape: Shape) -> PartSpecs:
        """Return one tensor of the matrix's shape."""
        return {"weight": (getattr(torch, self.dtype), shape)}

    def quantize(self, weight: Tensor) -> Parts:
        """Return the matrix in this type."""
        return {"weight": weight.to(getattr(torch, self.dtype))}

    def dequantize(self, parts: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Return the matrix in the given type."""
        return parts["weight"].to(dtype)
