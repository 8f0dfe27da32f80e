"""Where tensors lie in a record, contiguous bytes. Knows shapes and offsets; nothing of files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mixoff.quantization import PackedMatrix, Quantization, QuantizedTensor, Shape, StackedRows
from mixoff.tiers.aligned import PAGE, align

Key = tuple[int, int]  # layer, expert


@dataclass(frozen=True)
class RecordLocation:
    """Where one expert's record lies on disk, and the CRC-32 of its bytes, None if unknown."""

    file: Path
    offset: int
    nbytes: int
    crc32: int | None


_CACHE_LINE = 64  # bytes; parts start on one, for the kernels


@dataclass(frozen=True)
class _Part:
    matrix: int  # index in the layout's shapes
    name: str
    dtype: torch.dtype
    shape: Shape
    offset: int

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class RecordLayout:
    """Where each tensor of one or more quantized matrices lies in one record.

    Parameters
    ----------
    quantization
        How the matrices are stored.
    shapes
        Name and [N, K] of each matrix. Matrices with the same name are pieces of one matrix, whose
        rows are those of the first piece, then those of the next.
    offsets
        Where each matrix's parts begin, in bytes from the record's start, in the order of
        `shapes` and of `quantization.part_specs`. By default they lie in this order, each on a
        cache line.

    Raises
    ------
    ConfigError
        If the quantization can't store a matrix of such a shape.
    """

    quantization: Quantization
    shapes: tuple[tuple[str, Shape], ...]
    offsets: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._parts  # noqa: B018 - an impossible layout is refused here, not at its first use

    @cached_property
    def _parts(self) -> tuple[_Part, ...]:
        parts: list[_Part] = []
        offsets = None if self.offsets is None else iter(self.offsets)
        for matrix, (_, matrix_shape) in enumerate(self.shapes):
            for name, (dtype, shape) in self.quantization.part_specs(matrix_shape).items():
                behind = align(parts[-1].end, _CACHE_LINE) if parts else 0
                offset = behind if offsets is None else next(offsets)
                parts.append(_Part(matrix, name, dtype, shape, offset))
        return tuple(parts)

    @cached_property
    def nbytes(self) -> int:
        """Bytes from the record's start to the end of its last part."""
        return max(part.end for part in self._parts)

    @property
    def stride(self) -> int:
        """Bytes from the start of a record to that of the next: a multiple of a page."""
        return align(self.nbytes, PAGE)

    def tensors(self, record: Tensor) -> dict[str, PackedMatrix]:
        """Return a record's matrices by name, views into its bytes [nbytes or more], uint8."""
        views: list[dict[str, Tensor]] = [{} for _ in self.shapes]
        for part in self._parts:
            raw = record[part.offset : part.end]
            views[part.matrix][part.name] = raw.view(part.dtype).view(part.shape)
        pieces: dict[str, list[QuantizedTensor]] = {}
        for (name, shape), parts in zip(self.shapes, views, strict=True):
            tensor = QuantizedTensor(self.quantization, shape, parts)
            pieces.setdefault(name, []).append(tensor)
        return {
            name: StackedRows(tuple(stacked)) if stacked[1:] else stacked[0]
            for name, stacked in pieces.items()
        }

    def first_nonfinite(self, record: Tensor) -> str | None:
        """Return the name of the first non-finite scales or zeros; None if all are finite."""
        for part in self._parts:
            is_scale = part.dtype.is_floating_point and part.name != "weight"
            if is_scale and not _is_finite(record[part.offset : part.end], part.dtype):
                return f"{self.shapes[part.matrix][0]}'s {part.name}"
        return None

    def pack(self, tensors: Mapping[str, PackedMatrix]) -> Tensor:
        """Return the record [nbytes], uint8, of these matrices; bytes between parts are zero."""
        record = torch.zeros(self.nbytes, dtype=torch.uint8)
        for name, matrix in self.tensors(record).items():
            for target, source in zip(matrix.pieces, tensors[name].pieces, strict=True):
                for part, tensor in target.parts.items():
                    tensor.copy_(source.parts[part])
        return record


def _is_finite(raw: Tensor, dtype: torch.dtype) -> bool:
    """Return whether all floats in these bytes are finite.

    NaN and infinity have all bits of the exponent set, and integers are compared faster than
    float16.
    """
    integer = torch.int16 if dtype.itemsize == 2 else torch.int32
    exponent = torch.tensor(torch.inf, dtype=dtype, device=raw.device).view(integer)
    return bool(((raw.view(integer) & exponent) != exponent).all())
