"""Ways to damage a file, each undone when the test goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def each_flip(path: Path, positions: range | None = None, bits: int = 8) -> Iterator[int]:
    """Yield every position while one of its bits alone is flipped, `bits` times each."""
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for position in positions or range(len(content)):
            for number in range(bits):
                bit = number if bits == 8 else (position + number) % 8
                try:
                    _write_at(file, position, content[position] ^ 1 << bit)
                    yield position
                finally:
                    _write_at(file, position, content[position])


def each_truncation(path: Path, step: int = 1) -> Iterator[int]:
    """Yield every length, or one in `step`, that is too short while the file has it."""
    content = path.read_bytes()
    try:
        for length in range(len(content) - 1, -1, -step):
            with path.open("r+b") as file:
                file.truncate(length)
            yield length
    finally:
        path.write_bytes(content)


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """Let a file hold something else."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


@contextmanager
def swapped(one: Path, other: Path) -> Iterator[None]:
    """Let two files have each other's content."""
    contents = one.read_bytes(), other.read_bytes()
    with changed(one, contents[1]), changed(other, contents[0]):
        yield


def _write_at(file: BinaryIO, position: int, byte: int) -> None:
    file.seek(position)
    file.write(bytes([byte]))
