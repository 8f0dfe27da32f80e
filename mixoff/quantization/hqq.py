"""Half-quadratic quantization in groups along the inputs (axis 1).

Names and meaning of the parts are those of the package hqq: W = (W_q - zero) * scale.
Letters: N rows (outputs), K columns (inputs), G = K / group_size groups a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mixoff.errors import ConfigError
from mixoff.quantization.base import Parts, PartSpecs, Quantization, Shape
from mixoff.quantization.hqq_solver import solve
from mixoff.quantization.packing import BITS, pack, packed_shape, unpack

GROUPS_PER_PAIR = 128  # of 8-bit scales; kernels read pairs by it
_SCALE_BITS = (16, 8)


@dataclass(frozen=True)
class HQQ(Quantization):
    """Half-quadratic quantization (Badri and Shaji, 2023).

    Parameters
    ----------
    nbits
        Bits of a code: 8, 4, 3 or 2.
    group_size
        Weights of a row that share a scale and a zero.
    scale_nbits
        16 stores scales and zeros as float16. 8 stores them as bytes, with a float32 pair (factor
        and offset) for every 128 groups of a row, of which the last may be fewer: 3.06 instead of
        4 bits a weight for 2-bit codes in groups of 16.
    """

    method = "hqq"
    nbits: int = 4
    group_size: int = 64
    scale_nbits: int = 16

    def __post_init__(self) -> None:
        if type(self.nbits) is not int or self.nbits not in BITS:
            raise ConfigError(f"nbits={self.nbits!r}: give one of {', '.join(map(str, BITS))}.")
        if type(self.group_size) is not int or self.group_size < 1:
            raise ConfigError(f"group_size={self.group_size!r}: give a whole number above 0.")
        if type(self.scale_nbits) is not int or self.scale_nbits not in _SCALE_BITS:
            raise ConfigError(f"scale_nbits={self.scale_nbits!r}: give 16 or 8.")

    def part_specs(self, shape: Shape) -> PartSpecs:
        """Return the specs of W_q, scale and zero, and of `pairs` where scales have 8 bits.

        Raises
        ------
        ConfigError
            If groups don't divide the matrix's rows.
        """
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
        pairs = (torch.float32, (rows, -(-groups // GROUPS_PER_PAIR), 4))
        return {"W_q": codes, "scale": meta, "zero": meta, "pairs": pairs}

    def quantize(self, weight: Tensor) -> Parts:
        """Return the packed codes, scales and zeros that `solve` computes."""
        self.part_specs(tuple(weight.shape))  # raises before the solver runs for seconds
        rows, columns = weight.shape
        W_q, scale, zero = solve(weight, self.nbits, self.group_size, axis=1)
        scale, zero = scale.reshape(rows, -1), zero.reshape(rows, -1)  # [N, G]
        codes = pack(W_q.reshape(rows, columns), self.nbits)
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
        pairs = parts["pairs"].repeat_interleave(GROUPS_PER_PAIR, dim=1)[:, : scale.shape[1]]
        factor_s, offset_s, factor_z, offset_z = pairs.unbind(-1)  # [N, G] each
        return scale * factor_s + offset_s, zero * factor_z + offset_z


def _quantize_to_bytes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return [N, G] bytes and [N, ceil(G/128), 2] pairs: value = byte * factor + offset."""
    codes, pairs = [], []
    for block in torch.split(values, GROUPS_PER_PAIR, dim=1):  # [N, 128], the last narrower
        offset = block.amin(1, keepdim=True)  # [N, 1]
        factor = (block.amax(1, keepdim=True) - offset) / 255
        steps = (block - offset) / torch.where(factor > 0, factor, 1)
        codes.append(steps.round().to(torch.uint8))
        pairs.append(torch.cat([factor, offset], dim=1))
    return torch.cat(codes, dim=1), torch.stack(pairs, dim=1)
