"""What lies where inside one contiguous record of bytes. Knows shapes and offsets; no files."""

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
    """Where one expert's record lies on disk, and the CRC-32 of its bytes, None if not known."""

    file: Path
    offset: int
    nbytes: int
    crc32: int | None


_CACHE_LINE = 64  # bytes; parts start on one, as kernels want them


@dataclass(frozen=True)
class _Part:
    matrix: int  # its number among the layout's shapes
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
        Name and [N, K] of each matrix. Several of one name are pieces of one matrix: the rows of
        the first, then those of the next.
    offsets
        Where each matrix's parts begin, in bytes from the record's first, in the order of
        `shapes` and of `quantization.part_specs`. By default they lie in this order, each on a
        cache line.

    Raises
    ------
    ConfigError
        If a matrix of such a shape can't be stored so.
    """

    quantization: Quantization
    shapes: tuple[tuple[str, Shape], ...]
    offsets: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._parts  # noqa: B018 - a layout that can't be is refused here, not at its first use

    @cached_property
    def _parts(self) -> tuple[_Part, ...]:
        parts: list[_Part] = []
        given = None if self.offsets is None else iter(self.offsets)
        for matrix, (_, matrix_shape) in enumerate(self.shapes):
            for name, (dtype, shape) in self.quantization.part_specs(matrix_shape).items():
                follows = align(parts[-1].end, _CACHE_LINE) if parts else 0
                offset = follows if given is None else next(given)
                parts.append(_Part(matrix, name, dtype, shape, offset))
        return tuple(parts)

    @cached_property
    def nbytes(self) -> int:
        """Bytes from the record's first to its last."""
        return max(part.end for part in self._parts)

    @property
    def stride(self) -> int:
        """Bytes from the start of one record to the next: whole pages."""
        return align(self.nbytes, PAGE)

    def tensors(self, record: Tensor) -> dict[str, PackedMatrix]:
        """Return the matrices of a record as views into its bytes [nbytes or more], uint8."""
        views: list[dict[str, Tensor]] = [{} for _ in self.shapes]
        for part in self._parts:
            raw = record[part.offset : part.end]
            views[part.matrix][part.name] = raw.view(part.dtype).view(part.shape)
        pieces: dict[str, list[QuantizedTensor]] = {}
        for (name, shape), parts in zip(self.shapes, views, strict=True):
            tensor = QuantizedTensor(self.quantization, shape, parts)
            pieces.setdefault(name, []).append(tensor)
        return {
            name: StackedRows(tuple(several)) if several[1:] else several[0]
            for name, several in pieces.items()
        }

    def first_nonfinite(self, record: Tensor) -> str | None:
        """Return the name of the first scales or zeros with what is no number; None if all are."""
        for part in self._parts:
            codes = not part.dtype.is_floating_point or part.name == "weight"
            if not codes and not _finite(record[part.offset : part.end], part.dtype):
                return f"{self.shapes[part.matrix][0]}'s {part.name}"
        return None

    def pack(self, tensors: Mapping[str, PackedMatrix]) -> Tensor:
        """Return the record [nbytes], uint8, that holds these matrices; gaps are zeros."""
        record = torch.zeros(self.nbytes, dtype=torch.uint8)
        for name, matrix in self.tensors(record).items():
            for piece, given in zip(matrix.pieces, tensors[name].pieces, strict=True):
                for part, tensor in piece.parts.items():
                    tensor.copy_(given.parts[part])
        return record


def _finite(raw: Tensor, dtype: torch.dtype) -> bool:
    """Return whether floats are numbers, by their exponents: faster than asking a float16."""
    whole = torch.int16 if dtype.itemsize == 2 else torch.int32
    infinite = torch.tensor(torch.inf, dtype=dtype, device=raw.device).view(whole)  # the exponent
    return bool(((raw.view(whole) & infinite) != infinite).all())
