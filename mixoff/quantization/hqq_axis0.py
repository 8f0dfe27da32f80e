"""Half-quadratic quantization in groups along the outputs (axis 0), as mixtral-offloading has it.

A matrix W [N, K] is reshaped to [group_size, G] with G = N * K / group_size, and each column is a
group: W = (W_q - zero) * scale. Scales [1, G], reshaped to [scale_group_size, S], are bytes with a
scale and a zero for each column. Zeros [1, G] are bytes with one scale and one zero for all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mixoff.errors import ConfigError
from mixoff.quantization.base import Parts, PartSpecs, Quantization, Shape
from mixoff.quantization.hqq_solver import solve
from mixoff.quantization.packing import (
    BITS,
    pack,
    pack_words,
    packed_shape,
    packed_words_shape,
    unpack,
    unpack_words,
)

_LARGEST_ZERO = 60_000  # of 8-bit scales and zeros; float16 ends at 65,504
_SMALLEST_STEP = 2**-20  # which float16 has with four bits of precision


@dataclass(frozen=True)
class HQQAxis0(Quantization):
    """Half-quadratic quantization along axis 0, with 8-bit scales and zeros.

    Parts have the names of the layout that mixtral-offloading released.

    Parameters
    ----------
    nbits
        Bits of a code: 8, 4, 3 or 2.
    group_size
        Weights that share a scale and a zero: a multiple of 8.
    scale_group_size
        Scales that share a scale and a zero of their own.
    """

    method = "hqq-axis0"
    joins_rows = False  # a group has weights of many rows
    nbits: int = 2
    group_size: int = 16
    scale_group_size: int = 128

    def __post_init__(self) -> None:
        if type(self.nbits) is not int or self.nbits not in BITS:
            raise ConfigError(f"nbits={self.nbits!r}: give one of {', '.join(map(str, BITS))}.")
        if type(self.group_size) is not int or self.group_size < 1 or self.group_size % 8:
            raise ConfigError(f"group_size={self.group_size!r}: give a multiple of 8.")
        if type(self.scale_group_size) is not int or self.scale_group_size < 1:
            raise ConfigError(
                f"scale_group_size={self.scale_group_size!r}: give a whole number above 0."
            )

    @classmethod
    def read_off(cls, specs: PartSpecs, shape: Shape) -> "HQQAxis0":
        """Return the settings that tensors of an [N, K] matrix were made with.

        Raises
        ------
        ConfigError
            If these are no tensors of such a matrix.
        """
        codes_dtype, codes = specs["W_q"]
        _, scales = specs["meta.scale_q"]
        _, zeros = specs["meta.zero_q"]
        group_size = math.prod(shape) // max(1, math.prod(zeros))
        is_words = codes_dtype is torch.int32
        nbits = 3 if is_words else codes[0] * 8 // max(1, group_size) if codes else 0
        found = cls(nbits, group_size, scales[0] if scales else 0)
        expected = found.part_specs(shape)
        for name, spec in expected.items():
            if specs[name] != spec:
                raise ConfigError(f"{name} is {_said(specs[name])} where {_said(spec)} would fit.")
        return found

    def part_specs(self, shape: Shape) -> PartSpecs:
        """Return packed codes, and scales and zeros as bytes with float16 ones of their own."""
        groups = math.prod(shape) // self.group_size
        columns = groups // self.scale_group_size
        if not columns or columns * self.scale_group_size * self.group_size != math.prod(shape):
            raise ConfigError(
                f"group_size={self.group_size} and scale_group_size={self.scale_group_size}: a "
                f"{' x '.join(map(str, shape))} matrix doesn't fall into such groups, "
                "so give sizes whose product divides its weights."
            )
        codes = (torch.uint8, packed_shape(self.group_size, groups, self.nbits))
        words = (torch.int32, packed_words_shape(self.group_size, groups))
        return {
            "W_q": words if self.nbits == 3 else codes,
            "meta.scale_q": (torch.uint8, (self.scale_group_size, columns)),
            "meta.meta_scale.scale": (torch.float16, (1, columns)),
            "meta.meta_scale.zero": (torch.float16, (1, columns)),
            "meta.zero_q": (torch.uint8, (1, groups)),
            "meta.meta_zero.scale": (torch.float16, ()),
            "meta.meta_zero.zero": (torch.float16, ()),
        }

    def quantize(self, weight: Tensor) -> Parts:
        """Return packed codes as hqq's solver finds them, and its scales and zeros as bytes."""
        self.part_specs(tuple(weight.shape))
        codes, scale, zero = solve(weight, self.nbits, self.group_size, axis=0)
        scale_q, scale_step, scale_zero = _to_bytes(scale.reshape(self.scale_group_size, -1))
        zero_q, zero_step, zero_zero = _to_bytes(zero.reshape(-1, 1))
        return {
            "W_q": pack_words(codes) if self.nbits == 3 else pack(codes, self.nbits),
            "meta.scale_q": scale_q,
            "meta.meta_scale.scale": scale_step,
            "meta.meta_scale.zero": scale_zero,
            "meta.zero_q": zero_q.reshape(1, -1),
            "meta.meta_zero.scale": zero_step.reshape(()),
            "meta.meta_zero.zero": zero_zero.reshape(()),
        }

    def dequantize(self, parts: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Return (W_q - zero) * scale, computed in float32."""
        scale = _from_bytes(parts, "scale").view(1, -1)  # [1, G]
        zero = _from_bytes(parts, "zero")  # [1, G]
        if self.nbits == 3:
            weight = unpack_words(parts["W_q"], self.group_size, torch.float32)
        else:
            weight = unpack(parts["W_q"], self.nbits, self.group_size, torch.float32)
        weight.sub_(zero).mul_(scale)  # [group_size, G]
        return weight.view(shape).to(dtype)


def _from_bytes(parts: Mapping[str, Tensor], name: str) -> Tensor:
    step, zero = parts[f"meta.meta_{name}.scale"], parts[f"meta.meta_{name}.zero"]
    return (parts[f"meta.{name}_q"].float() - zero.float()) * step.float()


def _to_bytes(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return uint8 [R, C] and float16 steps and zeros [1, C]: value = (byte - zero) * step."""
    low, high = values.amin(0, keepdim=True), values.amax(0, keepdim=True)
    narrowest = (low.abs() / _LARGEST_ZERO).clamp_min(_SMALLEST_STEP)
    step = ((high - low) / 255).maximum(narrowest).half()  # [1, C]
    zero = (-low / step.float()).half()
    codes = (values / step.float() + zero.float()).round().clamp(0, 255)
    return codes.to(torch.uint8), step, zero


def _said(spec: tuple[torch.dtype, Shape]) -> str:
    return f"{str(spec[0]).removeprefix('torch.')} {list(spec[1])}"
