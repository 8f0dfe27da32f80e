"""Our files are safetensors files, and nothing in them changes unseen."""

import errno
import json
import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixoff.checkpoints.safetensors_read import read_shard
from mixoff.checkpoints.safetensors_write import NewTensor, write_shard
from mixoff.errors import CheckpointError
from mixoff.tiers.aligned import PAGE
from support.damage import changed, each_flip, each_truncation


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "bytes": torch.randint(256, (2, 3, 5), generator=generator, dtype=torch.uint8),
        "half": torch.randn(7, generator=generator).half(),
        "brain": torch.randn(3, 1, generator=generator).bfloat16(),
        "single": torch.randn(4, 4, generator=generator),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 4),
    }


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard.safetensors"
    whole = {name: NewTensor.whole(tensor) for name, tensor in tensors().items()}
    write_shard(path, whole, {"made by": "a test"})
    return path


def write(path: Path, header: Any, payload: bytes = b"", length: int | None = None) -> Path:
    """Write a safetensors file by hand; a header that is no text becomes JSON."""
    raw = (header if isinstance(header, str) else json.dumps(header)).encode(
        errors="surrogateescape"
    )
    length = len(raw) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + raw + payload)
    return path


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_the_safetensors_library_reads_the_same_tensors(shard):
    theirs = load_file(shard)
    assert theirs.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert theirs[name].dtype == tensor.dtype
        assert torch.equal(theirs[name], tensor)


def test_a_file_of_the_safetensors_library_is_read_as_it_reads_it(tmp_path):
    save_file(tensors(), tmp_path / "theirs.safetensors")
    shard = read_shard(tmp_path / "theirs.safetensors")
    assert all(torch.equal(shard.read(name), tensor) for name, tensor in tensors().items())


def test_one_row_is_read_alone(shard):
    assert torch.equal(read_shard(shard).read("bytes", 1), tensors()["bytes"][1])


def test_data_begins_on_a_page(shard):
    assert min(entry.offset for entry in read_shard(shard).tensors.values()) % PAGE == 0


def test_what_was_written_passes_its_checksums(shard):
    read_shard(shard).verify(tensors())


def test_every_flipped_bit_of_a_tensor_is_found_by_its_checksum(shard):
    opened = read_shard(shard)
    for name, tensor in opened.tensors.items():
        where = range(tensor.offset, tensor.offset + tensor.nbytes)
        for _ in each_flip(shard, where) if where else ():
            with pytest.raises(CheckpointError, match=f"{name} is damaged"):
                opened.verify([name])


def test_every_flipped_bit_of_a_header_is_an_error_or_another_checksum(shard):
    before = read_shard(shard)
    text = len(shard.read_bytes().split(b"}}", 1)[0])
    for position in chain(each_flip(shard, range(text)), each_flip(shard, range(text, PAGE), 1)):
        with suppress(CheckpointError):
            assert read_shard(shard).header_crc32 != before.header_crc32, position


def test_every_truncation_is_an_error(shard):
    for _ in each_truncation(shard):
        with pytest.raises(CheckpointError, match=r"shard\.safetensors: "):
            read_shard(shard)


def test_a_file_that_goes_on_after_its_last_tensor_is_an_error(shard):
    with (
        changed(shard, shard.read_bytes() + b"!"),
        pytest.raises(CheckpointError, match="longer than it should be"),
    ):
        read_shard(shard)


def test_a_file_that_was_cut_off_since_it_was_opened_is_an_error(shard):
    opened = read_shard(shard)
    last = next(name for name in reversed(opened.tensors) if opened.tensors[name].nbytes)
    for use in (opened.read, lambda name: opened.verify([name])):
        with (
            changed(shard, shard.read_bytes()[:-1]),
            pytest.raises(CheckpointError, match=f"the file ends inside {last}"),
        ):
            use(last)


def test_every_chunk_has_a_checksum_of_its_own(tmp_path):
    chunks = tensors()["bytes"]  # [2, 3, 5]
    tensor = NewTensor(torch.uint8, (2, 15), 2, iter(chunks))
    write_shard(tmp_path / "chunks", {"records": tensor}, {})
    crcs = [zlib.crc32(chunk.numpy().tobytes()) for chunk in chunks]
    assert read_shard(tmp_path / "chunks").checksums == {"records": crcs}


def test_a_file_that_could_not_be_written_whole_is_removed(tmp_path):
    def chunks() -> Iterator[Tensor]:
        yield torch.zeros(4, dtype=torch.uint8)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "part", {"records": NewTensor(torch.uint8, (2, 4), 2, chunks())}, {})
    assert not [*tmp_path.iterdir()]


HUGE = 2**63
MALFORMED = {
    "text": ("no JSON", b""),
    "a list": ([], b""),
    "a number": (1, b""),
    "nested too deep": ("[" * 100_000, b""),
    "a number of too many digits": ('{"a": ' + "1" * 5000 + "}", b""),
    "not UTF-8": ("\udcff", b""),
    "an entry that is no object": ({"a": 1}, b""),
    "an entry without offsets": ({"a": {"dtype": "U8", "shape": [4]}}, bytes(4)),
    "an entry without a type": ({"a": {"shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
    "one offset": ({"a": entry(offsets=[0])}, bytes(4)),
    "offsets that are text": ({"a": entry(offsets=["0", "4"])}, bytes(4)),
    "offsets in the wrong order": ({"a": entry(offsets=[4, 0])}, bytes(4)),
    "a negative offset": ({"a": entry(offsets=[-4, 0])}, bytes(4)),
    "an offset behind the end": ({"a": entry(offsets=[0, HUGE], shape=[HUGE])}, bytes(4)),
    "a gap before the first tensor": ({"a": entry(offsets=[1, 5])}, bytes(5)),
    "a gap between tensors": ({"a": entry(), "b": entry(offsets=[5, 9])}, bytes(9)),
    "tensors that overlap": ({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)),
    "tensors that share bytes": ({"a": entry(), "b": entry()}, bytes(4)),
    "a shape that is too large": ({"a": entry(shape=[5])}, bytes(4)),
    "a shape that is too small": ({"a": entry(shape=[3])}, bytes(4)),
    "a negative size": ({"a": entry(shape=[-4])}, bytes(4)),
    "two negative sizes": ({"a": entry(shape=[-2, -2])}, bytes(4)),
    "an infinite size": (
        '{"a": {"dtype": "U8", "shape": [Infinity], "data_offsets": [0, 4]}}',
        b"",
    ),
    "sizes whose product wraps to 4": (
        {"a": entry(shape=[4194305, 4194305, 211106198978564])},
        bytes(4),
    ),
    "a shape that is a number": ({"a": entry(shape=4)}, bytes(4)),
    "metadata that is a list": ({"__metadata__": [], "a": entry()}, bytes(4)),
    "checksums that are no JSON": ({"__metadata__": {"crc32": "?"}, "a": entry()}, bytes(4)),
    "checksums that are a list": ({"__metadata__": {"crc32": "[]"}, "a": entry()}, bytes(4)),
    "checksums that are numbers": ({"__metadata__": {"crc32": '{"a": [1]}'}}, b""),
    "bytes that nobody owns": ({}, b"!"),
}


@pytest.mark.parametrize(("header", "payload"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_one_clear_error(tmp_path, header, payload):
    path = write(tmp_path / "malformed.safetensors", header, payload)
    with pytest.raises(CheckpointError, match=r"malformed\.safetensors: "):
        read_shard(path)


@pytest.mark.parametrize("length", [0, 1, 2**32, 2**63, 2**64 - 1])
def test_a_header_length_that_cannot_be_is_an_error(tmp_path, length):
    path = write(tmp_path / "malformed.safetensors", {"a": entry()}, bytes(4), length)
    with pytest.raises(CheckpointError, match="no safetensors file, or cut off"):
        read_shard(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"],
    ids=["empty", "seven bytes", "a pointer of git-lfs"],
)
def test_what_is_no_safetensors_file_is_called_so(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        read_shard(tmp_path / "x")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent: can't be read \(No such file"):
        read_shard(tmp_path / "absent")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="is no file"):
        read_shard(tmp_path)
