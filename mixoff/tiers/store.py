"""Records on disk, read in chunks and verified. Knows files; nothing of slots or devices."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from mixoff.errors import CheckpointError
from mixoff.tiers.aligned import PAGE, align
from mixoff.tiers.buffers import Buffer, chunks
from mixoff.tiers.disk import DiskReader
from mixoff.tiers.record import Key, RecordLayout, RecordLocation


class RecordStore:
    """Every expert's record on disk.

    When a record is first read, its checksum is verified, and that its scales are finite.

    Parameters
    ----------
    locations
        ``locations[layer][expert]``.
    reader
        Reads files.
    layouts
        ``layouts[layer][expert]``; without them scales aren't checked.
    """

    def __init__(
        self,
        locations: Sequence[Sequence[RecordLocation]],
        reader: DiskReader,
        layouts: Sequence[Sequence[RecordLayout]] | None = None,
    ) -> None:
        self.reader = reader
        self._locations = locations
        self._layouts = layouts
        self._verified: set[Key] = set()

    def nbytes(self, layer: int, expert: int) -> int:
        """Return the bytes of a record."""
        return self._locations[layer][expert].nbytes

    def read(self, layer: int, expert: int, buffer: Buffer) -> Iterator[tuple[int, int]]:
        """Read a record into a buffer of host memory, and yield each chunk's range once it is read.

        Whole pages are read, as direct I/O requires, so the record begins at the same offset in
        its page as in the file. At its first read, a record is verified before the last chunk is
        yielded.

        Raises
        ------
        CheckpointError
            If the file is missing or too short, or if its bytes are not those that were written.
        """
        location = self._locations[layer][expert]
        buffer.start = location.offset % PAGE
        end = buffer.start + location.nbytes
        memory = buffer.memory.numpy().data
        crc32 = None if (layer, expert) in self._verified else location.crc32
        checksum = 0
        for first, last in chunks(0, align(end, PAGE)):
            position = location.offset - buffer.start + first
            count = self.reader.read(location.file, position, memory[first:last])
            if first + count < min(last, end):
                raise CheckpointError(
                    f"{location.file}: the file ends inside a record: "
                    "fetch or convert the checkpoint again."
                )
            if crc32 is not None:
                part = memory[max(first, buffer.start) : min(last, end)]
                checksum = zlib.crc32(part, checksum)
                if last >= end and checksum != crc32:
                    raise _damaged(location, layer, expert)
            if last >= end and (layer, expert) not in self._verified:
                self._check_scales(layer, expert, buffer.memory[buffer.start : end])
                self._verified.add((layer, expert))
            yield first, last

    def _check_scales(self, layer: int, expert: int, record: Tensor) -> None:
        """Refuse a record with non-finite scales, which may have been written as they are."""
        if self._layouts and (part := self._layouts[layer][expert].first_nonfinite(record)):
            raise CheckpointError(
                f"{self._locations[layer][expert].file}: expert {expert} of layer {layer}: {part} "
                "holds a non-finite number: fetch or convert the checkpoint again."
            )

    def facts(self) -> dict[str, Any]:
        """Return how files are read, and why not as requested, if they aren't."""
        return {"io": self.reader.io, "io_fallbacks": self.reader.fallbacks}

    def close(self) -> None:
        """Close the files."""
        self.reader.close()


def _damaged(location: RecordLocation, layer: int, expert: int) -> CheckpointError:
    return CheckpointError(
        f"{location.file}: expert {expert} of layer {layer} is damaged (its checksum "
        "differs): fetch or convert the checkpoint again."
    )
