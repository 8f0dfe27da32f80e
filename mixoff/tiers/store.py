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

    A record's checksum is verified when it is first read, and that its scales are numbers.

    Parameters
    ----------
    locations
        ``locations[layer][expert]``.
    reader
        Reads files.
    layouts
        ``layouts[layer][expert]``, without which scales aren't looked at.
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
        """Read a record into a buffer of host memory, yielding what part is there, chunk by chunk.

        Whole pages are read, as direct I/O wants them, so the record begins where it does in its
        page of the file. A chunk's position in the buffer is yielded when its bytes are there.

        Raises
        ------
        CheckpointError
            If the file is gone, too short, or its bytes are not those that were written.
        """
        location = self._locations[layer][expert]
        buffer.start = location.offset % PAGE
        end = buffer.start + location.nbytes
        memory = buffer.memory.numpy().data
        crc32 = None if (layer, expert) in self._verified else location.crc32
        found = 0
        for first, last in chunks(0, align(end, PAGE)):
            position = location.offset - buffer.start + first
            count = self.reader.read(location.file, position, memory[first:last])
            if first + count < min(last, end):
                raise CheckpointError(
                    f"{location.file}: the file ends inside a record: "
                    "fetch or convert the checkpoint again."
                )
            if crc32 is not None:
                found = zlib.crc32(memory[max(first, buffer.start) : min(last, end)], found)
                if last >= end and found != crc32:
                    raise _damaged(location, layer, expert)
            if last >= end and (layer, expert) not in self._verified:
                self._check_scales(layer, expert, buffer.memory[buffer.start : end])
                self._verified.add((layer, expert))
            yield first, last

    def _check_scales(self, layer: int, expert: int, record: Tensor) -> None:
        """Refuse a record with scales that are no numbers: a checksum tells of damage alone."""
        if self._layouts and (part := self._layouts[layer][expert].first_nonfinite(record)):
            raise CheckpointError(
                f"{self._locations[layer][expert].file}: expert {expert} of layer {layer}: {part} "
                "holds a non-finite number: fetch or convert the checkpoint again."
            )

    def facts(self) -> dict[str, Any]:
        """Return how files are read, and why not as it was asked for."""
        return {"io": self.reader.io, "io_fallbacks": self.reader.fallbacks}

    def close(self) -> None:
        """Close the files."""
        self.reader.close()


def _damaged(location: RecordLocation, layer: int, expert: int) -> CheckpointError:
    return CheckpointError(
        f"{location.file}: expert {expert} of layer {layer} is damaged (its checksum "
        "differs): fetch or convert the checkpoint again."
    )
