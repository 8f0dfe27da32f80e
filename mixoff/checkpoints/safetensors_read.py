"""Safetensors files, read by their headers. Knows bytes; nothing of models.

The format is https://github.com/huggingface/safetensors: eight bytes of header length, a JSON
header, the tensors' bytes without gaps. Ours are written by `mixoff.checkpoints.safetensors_write`.
"""

import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mixoff.errors import CheckpointError
from mixoff.safe_json import MAX_NBYTES, describe_content, file_size, parse, quoted, truncated

_MAX_FILES = 4096  # of a checkpoint; the largest Mixtral as mixtral-offloading has it takes 449
_MAX_NAME = 255  # characters of a tensor's name, and bytes of a file's
_MAX_DIMENSIONS = 8
_BEGINNING = 40  # bytes: the header's length, and enough to see what else a file may be
_MAX_TYPE = 16  # characters of a type's name
_FILE_NAME = re.compile(r"[^/\\:\0.][^/\\:\0]*\.safetensors")
_READ_CHUNK = 1 << 20
DTYPES = {
    "U8": torch.uint8,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I32": torch.int32,
}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a file: type, shape, and where its bytes lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Shard:
    """A file's tensors, the CRC-32 of each chunk that each was written in, and of the header."""

    path: Path
    tensors: Mapping[str, TensorEntry]
    checksums: Mapping[str, Sequence[int]]
    header_crc32: int
    header_nbytes: int

    def read(self, name: str, row: int | None = None) -> Tensor:
        """Return a tensor, or one row along its first axis, in memory of its own.

        Raises
        ------
        CheckpointError
            If the file can't be read, or has become shorter than its header lists.
        """
        entry = self.tensors[name]
        shape = entry.shape if row is None else entry.shape[1:]
        tensor = torch.empty(shape, dtype=DTYPES[entry.dtype], device="cpu")
        self.read_range(entry.offset + (row or 0) * tensor.nbytes, tensor, name)
        return tensor

    def read_range(self, offset: int, into: Tensor, what: str = "a record") -> None:
        """Fill a contiguous tensor with the file's bytes from `offset` on.

        Raises
        ------
        CheckpointError
            If the file can't be read, or has become shorter than its header lists.
        """
        view = into.view(-1).view(torch.uint8).numpy().data
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                if file.readinto(view) != into.nbytes:
                    raise CheckpointError(f"{self.path}: the file ends inside {what}.")
        except OSError as error:
            raise CheckpointError(f"{self.path}: can't be read ({error.strerror}).") from error

    def verify(self, names: Iterable[str]) -> None:
        """Compare tensors' bytes, each written in one chunk, with their checksums.

        Raises
        ------
        CheckpointError
            If one differs.
        """
        try:
            with self.path.open("rb") as file:
                for name in names:
                    if self.checksums.get(name) != [self._crc32(file, name)]:
                        raise CheckpointError(
                            f"{self.path}: {name} is damaged (its checksum differs): "
                            "fetch or convert the checkpoint again."
                        )
        except OSError as error:
            raise CheckpointError(f"{self.path}: can't be read ({error.strerror}).") from error

    def _crc32(self, file: BinaryIO, name: str) -> int:
        entry = self.tensors[name]
        file.seek(entry.offset)
        crc, left = 0, entry.nbytes
        while left:
            chunk = file.read(min(left, _READ_CHUNK))
            if not chunk:
                raise CheckpointError(f"{self.path}: the file ends inside {name}.")
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
        return crc


def files_beside(index: Path, names: Iterable[object]) -> list[str]:
    """Return the files that an index names, each once, sorted.

    Raises
    ------
    CheckpointError
        If one is no safetensors file of the index's folder on every system, or they are too many.
    """
    files = sorted({_file_name(index, name) for name in names})
    if len(files) > _MAX_FILES:
        raise CheckpointError(f"{index}: {len(files)} files: mixoff reads {_MAX_FILES} at most.")
    if len({name.casefold() for name in files}) < len(files):
        raise CheckpointError(f"{index}: names of files differ in their case alone: rename them.")
    return files


def _file_name(index: Path, name: object) -> str:
    if isinstance(name, str) and _FILE_NAME.fullmatch(name) and len(name.encode()) <= _MAX_NAME:
        return name
    raise CheckpointError(f"{index}: {quoted(name)} is no safetensors file of this folder.")


def read_shards(paths: Iterable[Path]) -> Iterator[Shard]:
    """Read files' headers, which together may be as long as one; raises as `read_shard` does."""
    left = MAX_NBYTES
    for path in paths:
        shard = read_shard(path)
        left -= shard.header_nbytes
        if left < 0:
            raise CheckpointError(
                f"{path}: the headers of the files up to this one have more than {MAX_NBYTES} "
                "bytes, and mixoff reads no more: no Mixtral needs as many."
            )
        yield shard


def read_shard(path: Path) -> Shard:
    """Read a file's header.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, or no safetensors file.
    """
    try:
        size = file_size(path)
        with path.open("rb") as file:
            start = file.read(_BEGINNING)
            length = header_nbytes(path, start, size)
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}).") from error
    return parse_shard(path, raw, size)


def header_nbytes(path: Path, start: bytes, size: int) -> int:
    """Return the length of a file's header by the file's first bytes and its size.

    Raises
    ------
    CheckpointError
        If it is no safetensors file, or is cut off inside its header.
    """
    length = int.from_bytes(start[:8], "little")
    if 2 <= length <= min(MAX_NBYTES, size - 8):
        return length
    reason = describe_content(start) if length > MAX_NBYTES or not start else None
    if reason is None and MAX_NBYTES < length <= size - 8:
        reason = f"a header of {length} bytes, and mixoff reads {MAX_NBYTES} at most"
    why = f" ({reason})" if reason else ""
    raise CheckpointError(f"{path}: no safetensors file, or cut off inside its header{why}.")


def parse_shard(path: Path, raw: bytes, size: int) -> Shard:
    """Return a file's tensors by its header, which follows its first 8 bytes; size is the file's.

    Raises
    ------
    CheckpointError
        If the header is damaged, or lists another size.
    """
    length = len(raw)
    try:
        header = parse(raw)
        checksums = _checksums(header.pop("__metadata__", {}))
        tensors = {_name(name): _entry(entry, 8 + length) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = truncated(str(error))
        raise CheckpointError(f"{path}: its header is damaged ({reason}).") from None
    _check_extent(path, tensors, start=8 + length, size=size)
    return Shard(path, tensors, checksums, zlib.crc32(raw), length)


def _checksums(metadata: Mapping[str, str]) -> dict[str, list[int]]:
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that is no text")
    written = parse(metadata.get("crc32", "{}").encode())
    return {name: [int(crc, 16) for crc in crcs] for name, crcs in written.items()}


def _name(name: str) -> str:
    if len(name) > _MAX_NAME:
        raise ValueError(f"a name of {len(name)} characters")
    return name


def _entry(entry: Mapping[str, Any], data_start: int) -> TensorEntry:
    begin, end = map(_whole, entry["data_offsets"])
    shape = tuple(map(_whole, entry["shape"]))
    dtype = entry["dtype"]
    fits = isinstance(dtype, str) and len(dtype) <= _MAX_TYPE and len(shape) <= _MAX_DIMENSIONS
    if begin > end or not fits:
        raise ValueError(f"offsets {begin} to {end}, shape {quoted(shape)}, type {quoted(dtype)}")
    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
        raise ValueError(f"{end - begin} bytes for {dtype} {shape}")
    return TensorEntry(dtype, shape, data_start + begin, end - begin)


def _whole(number: object) -> int:
    if type(number) is int and 0 <= number < 1 << 63:  # True is an int to isinstance
        return number
    raise ValueError(f"{quoted(number)} where a whole number belongs")


def _check_extent(path: Path, tensors: Mapping[str, TensorEntry], *, start: int, size: int) -> None:
    end = start
    order = sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes))
    for name, entry in order:  # a tensor without bytes may begin where another does
        if entry.offset != end:
            raise CheckpointError(f"{path}: {name} overlaps another tensor or leaves a gap.")
        end += entry.nbytes
    if end != size:
        raise CheckpointError(
            f"{path}: {size} bytes where its header lists {end}: the file is "
            f"{'cut off' if size < end else 'longer than it should be'}; "
            "fetch or convert the checkpoint again."
        )
