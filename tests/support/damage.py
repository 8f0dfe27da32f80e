"""Damage to files, each undone before the next."""

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
    """Cut a file to every shorter length, or one in `step`, and yield the length."""
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
    """Replace a file's content inside the ``with`` block."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


@contextmanager
def swapped(first: Path, second: Path) -> Iterator[None]:
    """Exchange the content of two files inside the ``with`` block."""
    contents = first.read_bytes(), second.read_bytes()
    with changed(first, contents[1]), changed(second, contents[0]):
        yield


def _write_at(file: BinaryIO, position: int, byte: int) -> None:
    file.seek(position)
    file.write(bytes([byte]))
