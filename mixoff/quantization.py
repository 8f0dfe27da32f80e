"""Quantized matrices: schemes, and the typed tensor they make. Knows nothing of files or caches.

HQQ's names and meaning: W = (W_q - zero) * scale, in groups along the inputs (axis 1).
Letters: N rows (outputs), K columns (inputs), G = K / group_size groups a row.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mixoff.errors import ConfigError
from mixoff.packing import BITS, pack, packed_shape, unpack

Shape = tuple[int, ...]
Parts = dict[str, Tensor]

_GROUPS_PER_PAIR = 128
_SCALE_BITS = (16, 8)
_MAX_ZERO = torch.finfo(torch.float16).max


class Quantization(ABC):
    """How a matrix is stored: which tensors, and how to make the matrix from them."""

    @abstractmethod
    def part_specs(self, shape: Shape) -> dict[str, tuple[torch.dtype, Shape]]:
        """Return dtype and shape of each tensor that stores an [N, K] matrix, in storage order.

        Raises
        ------
        ConfigError
            If a matrix of that shape can't be stored this way.
        """

    @abstractmethod
    def quantize(self, weight: Tensor) -> Parts:
        """Return the tensors that store an [N, K] matrix."""

    @abstractmethod
    def dequantize(self, parts: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Return the [N, K] matrix that the tensors store."""

    def to_dict(self) -> dict[str, Any]:
        """Return the scheme as JSON holds it; `quantization_from_dict` is its inverse."""
        settings: dict[str, Any] = asdict(self)  # type: ignore[call-overload]  # subclasses are
        return {"method": METHOD_OF[type(self)], **settings}

    def nbits_per_weight(self, shape: Shape) -> float:
        """Return the bits that one weight of an [N, K] matrix takes, scales and zeros included."""
        specs = self.part_specs(shape).values()
        nbytes = sum(torch.Size(part).numel() * dtype.itemsize for dtype, part in specs)
        return 8 * nbytes / (shape[0] * shape[1])


@dataclass(frozen=True)
class Unquantized(Quantization):
    """The matrix as it is, in a floating point type: float32, float16 or bfloat16."""

    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise ConfigError(f"dtype={self.dtype!r}: give float32, float16 or bfloat16.")

    def part_specs(self, shape: Shape) -> dict[str, tuple[torch.dtype, Shape]]:
        """Return one tensor of the matrix's own shape."""
        return {"weight": (getattr(torch, self.dtype), shape)}

    def quantize(self, weight: Tensor) -> Parts:
        """Return the matrix in this type."""
        return {"weight": weight.to(getattr(torch, self.dtype))}

    def dequantize(self, parts: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Return the matrix in the given type."""
        return parts["weight"].to(dtype)


@dataclass(frozen=True)
class HQQ(Quantization):
    """Half-quadratic quantization (Badri and Shaji, 2023), through hqq's own `Quantizer`.

    Parameters
    ----------
    nbits
        Bits of a code: 8, 4, 3 or 2.
    group_size
        Weights of a row that share a scale and a zero.
    scale_nbits
        16 stores scales and zeros as float16. 8 stores them as bytes with a float32 pair (factor
        and offset) for each 128 groups of a row, a row's last ones fewer: 3.06 instead of 4 bits a
        weight for 2-bit codes in groups of 16.
    """

    nbits: int = 4
    group_size: int = 64
    scale_nbits: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.nbits, int) or self.nbits not in BITS:
            raise ConfigError(f"nbits={self.nbits!r}: give one of {', '.join(map(str, BITS))}.")
        if not isinstance(self.group_size, int) or self.group_size < 1:
            raise ConfigError(f"group_size={self.group_size!r}: give a whole number above 0.")
        if self.scale_nbits not in _SCALE_BITS:
            raise ConfigError(f"scale_nbits={self.scale_nbits!r}: give 16 or 8.")

    def part_specs(self, shape: Shape) -> dict[str, tuple[torch.dtype, Shape]]:
        """Return the packed codes W_q, scale, zero, and with 8-bit scales their float32 pairs."""
        rows, columns = shape
        if columns % self.group_size:
            raise ConfigError(
                f"group_size={self.group_size} does not divide the {columns} inputs of a "
                f"{rows} x {columns} matrix: give a divisor of {columns}."
            )
        groups = columns // self.group_size
        codes = (torch.uint8, packed_shape(rows, columns, self.nbits))
        if self.scale_nbits == 16:
            meta = (torch.float16, (rows, groups))
            return {"W_q": codes, "scale": meta, "zero": meta}
        meta = (torch.uint8, (rows, groups))
        pairs = (torch.float32, (rows, -(-groups // _GROUPS_PER_PAIR), 4))
        return {"W_q": codes, "scale": meta, "zero": meta, "pairs": pairs}

    def quantize(self, weight: Tensor) -> Parts:
        """Return packed codes, scales and zeros as hqq's solver finds them."""
        from hqq.core.quantize import (
            Quantizer,  # here, because it imports slowly and loading needs no solver
        )

        self.part_specs(tuple(weight.shape))
        rows, columns = weight.shape
        W_q, meta = Quantizer.quantize(
            weight.float(),
            nbits=self.nbits,
            group_size=self.group_size,
            axis=1,
            round_zero=self.nbits == 4,
            bitpack=False,
            device=str(weight.device),
        )
        codes = pack(W_q.to(torch.uint8).reshape(rows, columns), self.nbits)
        scale = meta["scale"].float().reshape(rows, -1)  # [N, G]
        zero = meta["zero"].float().reshape(rows, -1)  # [N, G]
        if not (scale.isfinite() & (zero.abs() <= _MAX_ZERO)).all():
            raise ConfigError(
                f"a {rows} x {columns} matrix has weights that aren't finite, or groups too narrow "
                "and too far from zero for HQQ: store it with Unquantized()."
            )
        if self.scale_nbits == 16:
            return {"W_q": codes, "scale": scale.half(), "zero": zero.half()}
        scale_codes, scale_pairs = _quantize_to_bytes(scale)
        zero_codes, zero_pairs = _quantize_to_bytes(zero)
        pairs = torch.cat([scale_pairs, zero_pairs], dim=-1)  # [N, ceil(G/128), 4]
        return {"W_q": codes, "scale": scale_codes, "zero": zero_codes, "pairs": pairs}

    def dequantize(self, parts: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Return (W_q - zero) * scale, computed in float32."""
        rows, _ = shape
        scale, zero = self._scale_and_zero(parts)
        weight = unpack(parts["W_q"], self.nbits, rows, torch.float32)
        grouped = weight.view(rows, -1, self.group_size)  # [N, G, group_size]
        grouped.sub_(zero[..., None]).mul_(scale[..., None])
        return weight.to(dtype)

    def _scale_and_zero(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        scale, zero = parts["scale"].float(), parts["zero"].float()  # [N, G]
        if self.scale_nbits == 16:
            return scale, zero
        pairs = parts["pairs"].repeat_interleave(_GROUPS_PER_PAIR, dim=1)[:, : scale.shape[1]]
        factor_s, offset_s, factor_z, offset_z = pairs.unbind(-1)  # [N, G] each
        return scale * factor_s + offset_s, zero * factor_z + offset_z


METHODS: dict[str, type[Quantization]] = {"hqq": HQQ, "none": Unquantized}
METHOD_OF = {method: name for name, method in METHODS.items()}


def quantization_from_dict(settings: Mapping[str, Any]) -> Quantization:
    """Return the scheme that `Quantization.to_dict` wrote.

    Raises
    ------
    ConfigError
        If the method or one of its settings is unknown.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(f"quantization {settings!r}: give a method and its settings.")
    options = dict(settings)
    name = options.pop("method", None)
    if name not in tuple(METHODS):
        raise ConfigError(f"quantization method {name!r}: this mixoff knows {', '.join(METHODS)}.")
    try:
        return METHODS[name](**options)
    except TypeError as error:
        raise ConfigError(f"settings {options} of quantization method {name!r}: {error}.") from None


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint is quantized: attention and experts each have their own way."""

    attention: Quantization = HQQ(nbits=4, group_size=64)
    experts: Quantization = HQQ(nbits=2, group_size=16, scale_nbits=8)


@dataclass(frozen=True)
class QuantizedTensor:
    """An [N, K] matrix in the form its quantization stores.

    Parameters
    ----------
    quantization
        How it is stored.
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

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the [N, K] matrix in a floating point type."""
        return self.quantization.dequantize(self.parts, self.shape, dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """Return x W^T, [..., K] -> [..., N], in x's type."""
        return torch.nn.functional.linear(x, self.dequantize(x.dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())


def _quantize_to_bytes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return [N, G] bytes and [N, ceil(G/128), 2] pairs: value = byte * factor + offset."""
    codes, pairs = [], []
    for block in torch.split(values, _GROUPS_PER_PAIR, dim=1):  # [N, 128], the last narrower
        offset = block.amin(1, keepdim=True)  # [N, 1]
        factor = (block.amax(1, keepdim=True) - offset) / 255
        steps = (block - offset) / torch.where(factor > 0, factor, 1)
        codes.append(steps.round().to(torch.uint8))
        pairs.append(torch.cat([factor, offset], dim=1))
    return torch.cat(codes, dim=1), torch.stack(pairs, dim=1)
