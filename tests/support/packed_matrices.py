"""Packed matrices of random bytes, as kernels and plans take them."""

import torch

from mixoff.kernels.layout import Form, Packed, PackedLocation
from mixoff.quantization import HQQ, QuantizedTensor


def random_matrix(scheme: HQQ, rows: int, columns: int, seed: int) -> QuantizedTensor:
    """Return a matrix of any codes, scales and zeros, also such as no solver returns."""
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
    """Return a matrix as kernels take it."""
    scheme, parts = matrix.quantization, matrix.parts
    form = Form(scheme.nbits, scheme.group_size, scheme.scale_nbits == 8)
    pairs = parts.get("pairs")
    return Packed(form, *matrix.shape, parts["W_q"], parts["scale"], parts["zero"], pairs)


def location(matrix: QuantizedTensor) -> PackedLocation:
    """Return where a matrix lies, for a plan; the caller keeps the matrix."""
    return PackedLocation.of(packed(matrix))


def of_codes_zero(matrix: QuantizedTensor) -> torch.Tensor:
    """Return -zero * scale of each weight: the part that large codes and zeros cancel."""
    parts = {**matrix.parts, "W_q": torch.zeros_like(matrix.parts["W_q"])}
    return QuantizedTensor(matrix.quantization, matrix.shape, parts).dequantize()
