"""What lies where inside one contiguous record of bytes. Knows shapes and offsets; no files."""

import math
import mmap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mixoff.quantization import PackedMatrix, Quantization, QuantizedTensor, Shape, StackedRows

PAGE = 4096  # bytes; records start on a page, as direct I/O wants them
_CACHE_LINE = 64  # bytes; parts start on one, as kernels want them
_HUGE_PAGE = 2 << 20  # bytes
_HUGE_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux has it


def align(nbytes: int, to: int) -> int:
    """Return the next multiple of `to`."""
    return -(-nbytes // to) * to


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

    def strange_scales(self, record: Tensor) -> str | None:
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


def aligned_buffer(nbytes: int, device: torch.device | str = "cpu") -> Tensor:
    """Return an uninitialized uint8 tensor [nbytes] that starts on a page, a huge one if it can.

    A CPU's large buffer asks the system for huge pages: direct reads have fewer pages to pin, and
    products fewer to look up. Other threads write into it whatever mode the caller is in, which
    they couldn't if it were an inference tensor.
    """
    if _HUGE_ADVICE is not None and torch.device(device).type == "cpu" and nbytes >= _HUGE_PAGE:
        return _huge_buffer(nbytes, _HUGE_ADVICE)
    with torch.inference_mode(False):
        raw = torch.empty(nbytes + PAGE, dtype=torch.uint8, device=device)
        start = -raw.data_ptr() % PAGE
        return raw[start : start + nbytes]


def _huge_buffer(nbytes: int, advice: int) -> Tensor:
    """Return a tensor [nbytes] that starts on a huge page; what fills none is in usual ones."""
    memory = mmap.mmap(-1, nbytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with torch.inference_mode(False):
        raw = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory while it lives
        start = -raw.data_ptr() % _HUGE_PAGE
        with suppress(OSError):  # a system that has none of them serves as well
            memory.madvise(advice, start, nbytes // _HUGE_PAGE * _HUGE_PAGE)
        return raw[start : start + nbytes]
