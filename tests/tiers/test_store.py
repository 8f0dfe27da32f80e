"""Records are read as they were written, or not at all."""

import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from mixoff.config import Io
from mixoff.errors import CheckpointError
from mixoff.tiers.aligned import PAGE
from mixoff.tiers.buffers import Buffer
from mixoff.tiers.disk import DiskReader
from mixoff.tiers.record import RecordLocation
from mixoff.tiers.store import RecordStore

LAYERS, EXPERTS, NBYTES = 2, 4, 5000


def record(layer: int, expert: int) -> bytes:
    return bytes([10 * layer + expert + 1]) * NBYTES


@pytest.fixture
def locations(tmp_path: Path) -> list[list[RecordLocation]]:
    """Write two files of four records each, with bytes before, between and after them."""
    gap = b"\xff" * 37
    rows = []
    for layer in range(LAYERS):
        path = tmp_path / f"layer {layer}"
        records = [record(layer, expert) for expert in range(EXPERTS)]
        path.write_bytes(gap + b"".join(raw + gap for raw in records))
        rows.append(
            [
                RecordLocation(path, 37 + expert * (NBYTES + 37), NBYTES, zlib.crc32(raw))
                for expert, raw in enumerate(records)
            ]
        )
    return rows


def make(locations: list[list[RecordLocation]], io: Io = "buffered") -> RecordStore:
    return RecordStore(locations, DiskReader(io))


def read(store: RecordStore, layer: int, expert: int) -> bytes:
    buffer = Buffer.for_records(NBYTES)
    buffer.memory.fill_(77)
    list(store.read(layer, expert, buffer))
    return buffer.memory[buffer.start :][:NBYTES].numpy().tobytes()


def truncate(path: Path, nbytes: int = 0) -> None:
    with path.open("r+b") as file:
        file.truncate(nbytes)


def damage(location: RecordLocation) -> None:
    with location.file.open("r+b") as file:
        file.seek(location.offset + location.nbytes - 1)
        file.write(b"\xfe")


def open_files() -> list[str]:
    links = Path("/proc/self/fd").iterdir()
    return sorted(str(link.readlink()) for link in links if link.exists())


@pytest.mark.parametrize("io", ["buffered", "direct"])
@pytest.mark.parametrize("chunk", [PAGE, 2 * PAGE, 2**20])
def test_every_record_is_read_as_it_was_written_each_time(locations, monkeypatch, io, chunk):
    monkeypatch.setattr("mixoff.tiers.buffers.CHUNK", chunk)
    store = make(locations, io)
    for _ in range(3):
        for layer in range(LAYERS):
            for expert in range(EXPERTS):
                assert read(store, layer, expert) == record(layer, expert)


def test_a_chunk_of_a_record_is_read_when_its_range_is_yielded(locations, monkeypatch):
    monkeypatch.setattr("mixoff.tiers.buffers.CHUNK", PAGE)
    for expert, location in enumerate(locations[0]):
        buffer, whole, at = Buffer.for_records(NBYTES), record(0, expert), 0
        for first, last in make(locations).read(0, expert, buffer):
            assert (first, last) == (at, at + PAGE)
            assert buffer.start == location.offset % PAGE
            there = buffer.memory[max(first, buffer.start) : min(last, buffer.start + NBYTES)]
            assert there.numpy().tobytes() == whole[: len(there)]
            at = last
        assert at >= buffer.start + NBYTES


@pytest.mark.parametrize("chunk", [PAGE, 2**20])
def test_damage_is_found_before_the_last_chunk_is_yielded(locations, monkeypatch, chunk):
    monkeypatch.setattr("mixoff.tiers.buffers.CHUNK", chunk)
    damage(locations[0][1])
    buffer, ranges = Buffer.for_records(NBYTES), []
    with pytest.raises(CheckpointError, match="damaged"):
        ranges.extend(make(locations).read(0, 1, buffer))
    assert all(last < buffer.start + NBYTES for _, last in ranges)


def test_a_record_without_a_checksum_is_not_verified(locations):
    damage(locations[1][2])
    location = replace(locations[1][2], crc32=None)
    assert read(make([[location]]), 0, 0) == record(1, 2)[:-1] + b"\xfe"


def test_a_damaged_record_is_refused_with_its_expert_and_file(locations):
    damage(locations[1][2])
    with pytest.raises(CheckpointError, match="layer 1: expert 2 of layer 1 is damaged"):
        read(make(locations), 1, 2)


def test_a_damaged_record_does_not_keep_others_from_being_read(locations):
    damage(locations[1][2])
    store = make(locations)
    with pytest.raises(CheckpointError):
        read(store, 1, 2)
    assert read(store, 1, 3) == record(1, 3)


def test_a_damaged_record_is_refused_again_the_second_time(locations):
    damage(locations[0][0])
    store = make(locations)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="damaged"):
            read(store, 0, 0)


def test_a_record_is_read_once_its_damage_is_repaired(locations):
    store = make(locations)
    damage(locations[0][0])
    with pytest.raises(CheckpointError):
        read(store, 0, 0)
    with locations[0][0].file.open("r+b") as file:
        file.seek(37)
        file.write(record(0, 0))
    assert read(store, 0, 0) == record(0, 0)


def test_a_file_that_ends_inside_a_record_is_an_error_even_after_a_good_read(locations):
    store = make(locations)
    read(store, 0, 3)
    truncate(locations[0][3].file, locations[0][3].offset + NBYTES - 1)
    with pytest.raises(CheckpointError, match="the file ends inside a record"):
        read(store, 0, 3)


def test_a_missing_file_is_an_error_with_its_name(locations):
    locations[0][0].file.unlink()
    with pytest.raises(CheckpointError, match=r"layer 0: can't be read \(No such file"):
        read(make(locations), 0, 0)


def test_a_file_that_was_replaced_by_another_gives_its_old_bytes(locations, tmp_path):
    store = make(locations)
    read(store, 0, 0)
    (tmp_path / "other").write_bytes(bytes(10 * NBYTES))
    (tmp_path / "other").replace(locations[0][0].file)
    assert read(store, 0, 1) == record(0, 1)


@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_no_file_stays_open_without_its_store(locations, end):
    before = open_files()
    store = make(locations)
    read(store, 0, 0)
    read(store, 1, 0)
    if end == "closed":
        store.close()
    else:
        del store
    assert open_files() == before
