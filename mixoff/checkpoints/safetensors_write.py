"""Writes safetensors files chunk by chunk. Knows bytes; nothing of models.

Their data begins on a page. The header's metadata keeps a CRC-32 for each chunk that was written.
"""

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixoff.checkpoints.safetensors_read import DTYPES, Shard
from mixoff.tiers.aligned import PAGE, align

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: type, shape, and its bytes in chunks, each with its own checksum."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    num_chunks: int
    chunks: Iterable[Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def whole(cls, tensor: Tensor) -> "NewTensor":
        """Return a tensor that is written in one chunk."""
        return cls(tensor.dtype, tuple(tensor.shape), 1, [tensor])


def write_shard(path: Path, tensors: Mapping[str, NewTensor], metadata: Mapping[str, str]) -> None:
    """Write a file whose data begins on a page; chunks are made and written one at a time.

    The file is on the disk when this returns; one that couldn't be written whole is removed.

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
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def shard_nbytes(tensors: Mapping[str, NewTensor], metadata: Mapping[str, str]) -> int:
    """Return how many bytes `write_shard` will write, to the byte; no chunk is made for it."""
    checksums = {name: [0] * tensor.num_chunks for name, tensor in tensors.items()}
    header = _header(tensors, metadata, checksums)
    return len(header) + sum(tensor.nbytes for tensor in tensors.values())


def is_whole(shard: Shard, tensors: Mapping[str, NewTensor], metadata: Mapping[str, str]) -> bool:
    """Return whether a file's header is what `write_shard` writes for these tensors.

    Checksums may be any. `read_shard` has compared the file's size with the header.
    """
    counts = {name: len(crcs) for name, crcs in shard.checksums.items()}
    if counts != {name: tensor.num_chunks for name, tensor in tensors.items()}:
        return False
    header = _header(tensors, metadata, {name: shard.checksums[name] for name in tensors})
    return zlib.crc32(header[8:]) == shard.header_crc32


def _header(
    tensors: Mapping[str, NewTensor],
    metadata: Mapping[str, str],
    checksums: Mapping[str, Sequence[int]],
) -> bytes:
    entries: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    # Eight digits each, so that the header is as long before the checksums are known as after.
    crc32 = json.dumps({name: [f"{crc:08x}" for crc in crcs] for name, crcs in checksums.items()})
    text = json.dumps({"__metadata__": {"format": "pt", **metadata, "crc32": crc32}} | entries)
    length = align(8 + len(text), PAGE) - 8
    return length.to_bytes(8, "little") + text.encode().ljust(length)
