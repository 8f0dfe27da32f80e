"""Half-quadratic quantization in groups along the outputs (axis 0), as mixtral-offloading has it.

A matrix W [N, K] is reshaped to [group_size, G] with G = N * K / group_size, and each column is a
group: W = (W_q - zero) * scale. Scales and zeros are themselves quantized to bytes: scales [1, G],
reshaped to [scale_group_size, S], with a float16 scale and zero for each column; zeros [1, G] with
one float16 scale and zero for all of them.
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

_LARGEST_ZERO = 60_000  # of bytes' zeros, which are stored as float16 (65,504 at most)
_SMALLEST_STEP = 2**-20  # of bytes' scales: below float16's normal range, with 4 bits of precision


@dataclass(frozen=True)
class HQQAxis0(Quantization):
    """Half-quadratic quantization along axis 0, with 8-bit scales and zeros.

    The names of parts are those of the checkpoint that mixtral-offloading released.

    Parameters
    ----------
    nbits
        Bits of a code: 8, 4, 3 or 2.
    group_size
        Weights that share a scale and a zero: a multiple of 8.
    scale_group_size
        Scales of groups that share a scale and a zero.
    """

    method = "hqq-axis0"
    joins_rows = False  # a group has weights of many rows, so matrices can't be joined by rows
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
        """Return the settings that the tensors of an [N, K] matrix were made with.

        Raises
        ------
        ConfigError
            If no settings give tensors of these types and shapes.
        """
        codes_dtype, codes = specs["W_q"]
        _, scales = specs["meta.scale_q"]
        _, zeros = specs["meta.zero_q"]
        group_size = math.prod(shape) // max(1, math.prod(zeros))
        is_words = codes_dtype is torch.int32
        nbits = 3 if is_words else codes[0] * 8 // max(1, group_size) if codes else 0
        settings = cls(nbits, group_size, scales[0] if scales else 0)
        for name, spec in settings.part_specs(shape).items():
            if specs[name] != spec:
                raise ConfigError(f"{name} is {_text(specs[name])} where {_text(spec)} would fit.")
        return settings

    def part_specs(self, shape: Shape) -> PartSpecs:
        """Return the specs of packed codes, and of scales and zeros as bytes with float16 scales.

        Raises
        ------
        ConfigError
            If groups, or groups of scales, don't divide the matrix.
        """
        groups = math.prod(shape) // self.group_size
        columns = groups // self.scale_group_size
        if not columns or columns * self.scale_group_size * self.group_size != math.prod(shape):
            raise ConfigError(
                f"group_size={self.group_size} and scale_group_size={self.scale_group_size}: a "
                f"{' x '.join(map(str, shape))} matrix can't be divided into such groups: "
                "give sizes whose product divides its number of weights."
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
        """Return the packed codes that `solve` computes, and its scales and zeros as bytes."""
        self.part_specs(tuple(weight.shape))  # raises before the solver runs for seconds
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
    # A step is at least so wide that the zero, -low / step, fits float16.
    narrowest = (low.abs() / _LARGEST_ZERO).clamp_min(_SMALLEST_STEP)
    step = ((high - low) / 255).maximum(narrowest).half()  # [1, C]
    zero = (-low / step.float()).half()
    # With step and zero as float16 stores them: their rounding then moves no value that is stored.
    codes = (values / step.float() + zero.float()).round().clamp(0, 255)
    return codes.to(torch.uint8), step, zero


def _text(spec: tuple[torch.dtype, Shape]) -> str:
    return f"{str(spec[0]).removeprefix('torch.')} {list(spec[1])}"
