"""README's pictures exist, and are small PNG files of a readable size."""

import struct
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "data" / "pictures"


@pytest.mark.parametrize("name", ["chat.png", "cache.png"])
def test_a_picture_of_the_readme_is_a_small_png_of_readable_size(name):
    data = (FOLDER / name).read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.rstrip().endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    assert 300 <= width <= 2000
    assert 200 <= height <= 2000
    assert 5_000 < len(data) < 150_000
