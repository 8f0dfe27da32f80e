"""Records below the device: on disk, and in host memory within a budget. Knows nothing of slots."""

import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from mixoff.errors import CheckpointError


@dataclass(frozen=True)
class RecordLocation:
    """Where one expert's record lies on disk, and the CRC-32 of its bytes if it is known."""

    file: Path
    offset: int
    nbytes: int
    crc32: int | None


class RecordStore:
    """Every expert's record, read from disk or from host memory.

    A record's checksum, if there is one, is verified when it is first read. Records that were read
    are kept in host memory as long as the budget lasts; they never change, so nothing is ever
    written back.

    Parameters
    ----------
    locations
        ``locations[layer][expert]``.
    host_memory
        Bytes of host memory that records may take.
    """

    def __init__(self, locations: Sequence[Sequence[RecordLocation]], host_memory: int = 0) -> None:
        self._locations = locations
        self._host_memory_left = host_memory
        self._host: dict[tuple[int, int], Tensor] = {}
        self._verified: set[tuple[int, int]] = set()
        self._files: dict[Path, BinaryIO] = {}
        weakref.finalize(self, _close, self._files)  # a store that is dropped leaves no file open

    def nbytes(self, layer: int, expert: int) -> int:
        """Return the bytes of a record."""
        return self._locations[layer][expert].nbytes

    def read(self, layer: int, expert: int, into: Tensor, *, keep: bool = True) -> None:
        """Copy a record into a buffer of host memory, uint8, of its size or more.

        Parameters
        ----------
        keep
            Whether host memory may keep the record, if the budget allows.

        Raises
        ------
        CheckpointError
            If the file is gone, too short, or its bytes are not those that were written.
        """
        location = self._locations[layer][expert]
        record = into[: location.nbytes]
        if (kept := self._host.get((layer, expert))) is not None:
            record.copy_(kept)
            return
        self._read_from_disk(location, record)
        if (layer, expert) not in self._verified:
            if location.crc32 not in (None, zlib.crc32(record.numpy().data)):
                raise CheckpointError(
                    f"{location.file}: expert {expert} of layer {layer} is damaged (its checksum "
                    "differs): fetch or convert the checkpoint again."
                )
            self._verified.add((layer, expert))
        if keep and location.nbytes <= self._host_memory_left:
            self._host[layer, expert] = record.clone()
            self._host_memory_left -= location.nbytes

    def close(self) -> None:
        """Close the files and drop what host memory holds."""
        _close(self._files)
        self._host.clear()

    def _read_from_disk(self, location: RecordLocation, record: Tensor) -> None:
        view = record.numpy().data
        try:
            if location.file not in self._files:
                self._files[location.file] = location.file.open("rb", buffering=0)
            file = self._files[location.file]
            file.seek(location.offset)
            while view:
                count = file.readinto(view)  # type: ignore[attr-defined]  # raw files have it
                if not count:
                    raise CheckpointError(
                        f"{location.file}: the file ends inside a record: "
                        "fetch or convert the checkpoint again."
                    )
                view = view[count:]
        except OSError as error:
            raise CheckpointError(f"{location.file}: can't be read ({error.strerror}).") from error


def _close(files: dict[Path, BinaryIO]) -> None:
    for file in files.values():
        file.close()
    files.clear()
