"""Packed matrices, and the instruction sets that this machine can run."""

import torch

from mixoff.kernels.cpu.compile import usable_isas
from mixoff.kernels.layout import Form, Packed, PackedLocation
from mixoff.quantization import HQQ, QuantizedTensor
from support.tiers import tiered

EVERY_ISA = usable_isas()
ISAS = tiered(EVERY_ISA, {EVERY_ISA[0], EVERY_ISA[-1]})  # fastest and generic in the fast tier


def random_matrix(scheme: HQQ, rows: int, columns: int, seed: int) -> QuantizedTensor:
    """Return any codes, scales and zeros: what a solver would never find, too."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name, (dtype, shape) in scheme.part_specs((rows, columns)).items():
        if dtype is torch.uint8:
            parts[name] = torch.randint(256, shape, dtype=dtype, generator=generator)
        else:
            parts[name] = (torch.randn(shape, generator=generator) / 8).to(dtype)
    if scheme.scale_nbits == 16:
        parts["zero"] = parts["zero"] * 2**scheme.nbits
    return QuantizedTensor(scheme, (rows, columns), parts)


def packed(matrix: QuantizedTensor) -> Packed:
    scheme, parts = matrix.quantization, matrix.parts
    form = Form(scheme.nbits, scheme.group_size, scheme.scale_nbits == 8)
    pairs = parts.get("pairs")
    return Packed(form, *matrix.shape, parts["W_q"], parts["scale"], parts["zero"], pairs)


def location(matrix: QuantizedTensor) -> PackedLocation:
    """Return where a matrix lies, which must be kept as long as that is read."""
    return PackedLocation.of(packed(matrix))


def of_codes_zero(matrix: QuantizedTensor) -> torch.Tensor:
    """Return -zero * scale of each weight: what large codes and zeros cancel out."""
    parts = {**matrix.parts, "W_q": torch.zeros_like(matrix.parts["W_q"])}
    return QuantizedTensor(matrix.quantization, matrix.shape, parts).dequantize()
