"""Safetensors files, read by header and written in a stream. Knows bytes; nothing of models.

The format is https://github.com/huggingface/safetensors: eight bytes of header length, a JSON
header, the tensors' bytes without gaps. Ours begin their data on a page, and keep a CRC-32 for each
chunk written in the header's metadata.
"""

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixoff.errors import CheckpointError
from mixoff.records import PAGE, align

_MAX_HEADER = 100_000_000  # bytes, as the reference implementation allows
_READ_CHUNK = 1 << 20
DTYPES = {
    "U8": torch.uint8,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I32": torch.int32,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a file: type, shape, and where its bytes lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Shard:
    """A file's tensors, the CRC-32 of each chunk that each was written in, and the header's own."""

    path: Path
    tensors: Mapping[str, TensorEntry]
    checksums: Mapping[str, Sequence[int]]
    header_crc32: int

    def read(self, name: str, row: int | None = None) -> Tensor:
        """Return a tensor, or one row along its first axis, in memory of its own.

        Raises
        ------
        CheckpointError
            If the file can't be read, or not any more as far as its header tells.
        """
        entry = self.tensors[name]
        shape = entry.shape if row is None else entry.shape[1:]
        tensor = torch.empty(shape, dtype=DTYPES[entry.dtype], device="cpu")
        view = tensor.view(-1).view(torch.uint8).numpy().data
        try:
            with self.path.open("rb") as file:
                file.seek(entry.offset + (row or 0) * tensor.nbytes)
                if file.readinto(view) != tensor.nbytes:
                    raise CheckpointError(f"{self.path}: the file ends inside {name}.")
        except OSError as error:
            raise CheckpointError(f"{self.path}: can't be read ({error.strerror}).") from error
        return tensor

    def verify(self, names: Iterable[str]) -> None:
        """Compare tensors' bytes, each written in one chunk, with their checksums.

        Raises
        ------
        CheckpointError
            If one differs.
        """
        with self.path.open("rb") as file:
            for name in names:
                entry = self.tensors[name]
                file.seek(entry.offset)
                crc, left = 0, entry.nbytes
                while left:
                    chunk = file.read(min(left, _READ_CHUNK))
                    if not chunk:
                        raise CheckpointError(f"{self.path}: the file ends inside {name}.")
                    crc = zlib.crc32(chunk, crc)
                    left -= len(chunk)
                if self.checksums.get(name) != [crc]:
                    raise CheckpointError(
                        f"{self.path}: {name} is damaged (its checksum differs): "
                        "fetch or convert the checkpoint again."
                    )


def read_shard(path: Path) -> Shard:
    """Read a file's header.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, or no safetensors file.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise CheckpointError(f"{path}: is no file.")
        with path.open("rb") as file:
            raw = file.read(header_nbytes(path, file.read(8), size))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}).") from error
    except ValueError as error:  # a null byte, or half a character
        raise CheckpointError(f"{str(path)!r}: no name that a file can have ({error}).") from None
    return parse_shard(path, raw, size)


def header_nbytes(path: Path, start: bytes, size: int) -> int:
    """Return how long the header is of a file that begins with these 8 bytes, and has this size.

    Raises
    ------
    CheckpointError
        If it is no safetensors file, or is cut off inside its header.
    """
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise CheckpointError(f"{path}: no safetensors file, or cut off inside its header.")
    return length


def parse_shard(path: Path, raw: bytes, size: int) -> Shard:
    """Return what a file's header tells, which follows its first 8 bytes; size is the file's.

    Raises
    ------
    CheckpointError
        If the header is damaged, or tells of another size.
    """
    length = len(raw)
    try:
        header = json.loads(raw)
        checksums = _checksums(header.pop("__metadata__", {}))
        tensors = {name: _entry(entry, 8 + length) for name, entry in header.items()}
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CheckpointError(f"{path}: its header is damaged ({error}).") from None
    _check_extent(path, tensors, start=8 + length, size=size)
    return Shard(path, tensors, checksums, zlib.crc32(raw))


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: type, shape, and its bytes in chunks, each with its own checksum."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    num_chunks: int
    chunks: Iterable[Tensor]

    @classmethod
    def whole(cls, tensor: Tensor) -> "NewTensor":
        """Return a tensor that is written in one chunk."""
        return cls(tensor.dtype, tuple(tensor.shape), 1, [tensor])


def write_shard(path: Path, tensors: Mapping[str, NewTensor], metadata: Mapping[str, str]) -> None:
    """Write a file whose data begins on a page; chunks are made and written one at a time.

    A file that couldn't be written whole is removed.

    Raises
    ------
    OSError
        If the disk is full or refuses.
    """
    checksums = {name: [0] * tensor.num_chunks for name, tensor in tensors.items()}
    try:
        with path.open("wb") as file:
            file.write(_header(tensors, metadata, checksums))
            for name, tensor in tensors.items():
                for number, chunk in enumerate(tensor.chunks):
                    raw = chunk.contiguous().view(-1).view(torch.uint8).numpy().data
                    checksums[name][number] = zlib.crc32(raw)
                    file.write(raw)
            file.seek(0)
            file.write(_header(tensors, metadata, checksums))
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def _header(
    tensors: Mapping[str, NewTensor],
    metadata: Mapping[str, str],
    checksums: Mapping[str, Sequence[int]],
) -> bytes:
    entries: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        nbytes = torch.Size(tensor.shape).numel() * tensor.dtype.itemsize
        entries[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    # Eight digits each, so that the header is as long before the checksums are known as after.
    crc32 = json.dumps({name: [f"{crc:08x}" for crc in crcs] for name, crcs in checksums.items()})
    text = json.dumps({"__metadata__": {"format": "pt", **metadata, "crc32": crc32}} | entries)
    length = align(8 + len(text), PAGE) - 8
    return length.to_bytes(8, "little") + text.encode().ljust(length)


def _checksums(metadata: Mapping[str, str]) -> dict[str, list[int]]:
    written = json.loads(metadata.get("crc32", "{}"))
    return {name: [int(crc, 16) for crc in crcs] for name, crcs in written.items()}


def _entry(entry: Mapping[str, Any], data_start: int) -> TensorEntry:
    begin, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    dtype = str(entry["dtype"])
    if not 0 <= begin <= end or any(size < 0 for size in shape):
        raise ValueError(f"offsets {begin} to {end}, shape {shape}")
    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
        raise ValueError(f"{end - begin} bytes for {dtype} {shape}")
    return TensorEntry(dtype, shape, data_start + begin, end - begin)


def _check_extent(path: Path, tensors: Mapping[str, TensorEntry], *, start: int, size: int) -> None:
    end = start
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].offset):
        if entry.offset != end:
            raise CheckpointError(f"{path}: {name} overlaps another tensor or leaves a gap.")
        end += entry.nbytes
    if end != size:
        raise CheckpointError(
            f"{path}: {size} bytes where its header tells of {end}: the file is "
            f"{'cut off' if size < end else 'longer than it should be'}; "
            "fetch or convert the checkpoint again."
        )
