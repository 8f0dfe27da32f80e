"""What lies where inside one contiguous record of bytes. Knows shapes and offsets; no files."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mixoff.quantization import Quantization, QuantizedTensor, Shape

PAGE = 4096  # bytes; records start on a page, as direct I/O wants them
_CACHE_LINE = 64  # bytes; parts start on one, as kernels want them


def align(nbytes: int, to: int) -> int:
    """Return the next multiple of `to`."""
    return -(-nbytes // to) * to


@dataclass(frozen=True)
class _Part:
    matrix: str
    name: str
    dtype: torch.dtype
    shape: Shape
    offset: int

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class RecordLayout:
    """Where each tensor of one or more quantized matrices lies in one record.

    Parameters
    ----------
    quantization
        How the matrices are stored.
    shapes
        Name and [N, K] of each matrix, in the order in which they lie in the record.

    Raises
    ------
    ConfigError
        If a matrix of such a shape can't be stored so.
    """

    quantization: Quantization
    shapes: tuple[tuple[str, Shape], ...]

    def __post_init__(self) -> None:
        self._parts  # noqa: B018 - a layout that can't be is refused here, not at its first use

    @cached_property
    def _parts(self) -> tuple[_Part, ...]:
        parts, offset = [], 0
        for matrix, matrix_shape in self.shapes:
            for name, (dtype, shape) in self.quantization.part_specs(matrix_shape).items():
                parts.append(_Part(matrix, name, dtype, shape, align(offset, _CACHE_LINE)))
                offset = parts[-1].offset + parts[-1].nbytes
        return tuple(parts)

    @cached_property
    def nbytes(self) -> int:
        """Bytes from the record's first to its last."""
        return self._parts[-1].offset + self._parts[-1].nbytes

    @property
    def stride(self) -> int:
        """Bytes from the start of one record to the next: whole pages."""
        return align(self.nbytes, PAGE)

    def tensors(self, record: Tensor) -> dict[str, QuantizedTensor]:
        """Return the matrices of a record as views into its bytes [nbytes or more], uint8."""
        views: dict[str, dict[str, Tensor]] = {matrix: {} for matrix, _ in self.shapes}
        for part in self._parts:
            raw = record[part.offset : part.offset + part.nbytes]
            views[part.matrix][part.name] = raw.view(part.dtype).view(part.shape)
        return {
            matrix: QuantizedTensor(self.quantization, shape, views[matrix])
            for matrix, shape in self.shapes
        }

    def pack(self, tensors: Mapping[str, QuantizedTensor]) -> Tensor:
        """Return the record [nbytes], uint8, that holds these matrices; gaps are zeros."""
        record = torch.zeros(self.nbytes, dtype=torch.uint8)
        for matrix, tensor in self.tensors(record).items():
            for name, part in tensor.parts.items():
                part.copy_(tensors[matrix].parts[name])
        return record


def aligned_buffer(nbytes: int, device: torch.device | str = "cpu") -> Tensor:
    """Return an uninitialized uint8 tensor [nbytes] that starts on a page."""
    raw = torch.empty(nbytes + PAGE, dtype=torch.uint8, device=device)
    start = -raw.data_ptr() % PAGE
    return raw[start : start + nbytes]
