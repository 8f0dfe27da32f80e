"""Records come back as they were written, or not at all."""

import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mixoff.errors import CheckpointError
from mixoff.store import RecordLocation, RecordStore

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


def read(store: RecordStore, layer: int, expert: int) -> bytes:
    buffer = torch.zeros(NBYTES, dtype=torch.uint8)
    store.read(layer, expert, buffer)
    return buffer.numpy().tobytes()


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


@pytest.mark.parametrize("host_memory", [0, 2 * NBYTES, 2**30])
def test_every_record_is_read_as_it_was_written_each_time(locations, host_memory):
    store = RecordStore(locations, host_memory)
    for _ in range(3):
        for layer in range(LAYERS):
            for expert in range(EXPERTS):
                assert read(store, layer, expert) == record(layer, expert)


def test_a_larger_buffer_is_filled_only_as_far_as_the_record_goes(locations):
    buffer = torch.full((NBYTES + 9,), 77, dtype=torch.uint8)
    RecordStore(locations).read(0, 0, buffer)
    assert (buffer[NBYTES:] == 77).all()


def test_a_record_without_a_checksum_is_read_as_it_is(locations):
    damage(locations[1][2])
    location = replace(locations[1][2], crc32=None)
    assert read(RecordStore([[location]]), 0, 0) == record(1, 2)[:-1] + b"\xfe"


def test_a_damaged_record_is_refused_with_its_expert_and_file(locations):
    damage(locations[1][2])
    with pytest.raises(CheckpointError, match="layer 1: expert 2 of layer 1 is damaged"):
        read(RecordStore(locations), 1, 2)


def test_a_damaged_record_does_not_keep_others_from_being_read(locations):
    damage(locations[1][2])
    store = RecordStore(locations)
    with pytest.raises(CheckpointError):
        read(store, 1, 2)
    assert read(store, 1, 3) == record(1, 3)


def test_a_damaged_record_is_refused_again_the_second_time(locations):
    damage(locations[0][0])
    store = RecordStore(locations, host_memory=2**30)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="damaged"):
            read(store, 0, 0)


def test_a_record_is_read_once_its_damage_is_repaired(locations):
    store = RecordStore(locations)
    damage(locations[0][0])
    with pytest.raises(CheckpointError):
        read(store, 0, 0)
    with locations[0][0].file.open("r+b") as file:
        file.seek(37)
        file.write(record(0, 0))
    assert read(store, 0, 0) == record(0, 0)


def test_a_file_that_ends_inside_a_record_is_an_error_even_after_a_good_read(locations):
    store = RecordStore(locations)
    read(store, 0, 3)
    truncate(locations[0][3].file, locations[0][3].offset + NBYTES - 1)
    with pytest.raises(CheckpointError, match="the file ends inside a record"):
        read(store, 0, 3)


def test_a_missing_file_is_an_error_with_its_name(locations):
    locations[0][0].file.unlink()
    with pytest.raises(CheckpointError, match=r"layer 0: can't be read \(No such file"):
        read(RecordStore(locations), 0, 0)


def test_a_file_that_was_replaced_by_another_gives_its_old_bytes(locations, tmp_path):
    store = RecordStore(locations)
    read(store, 0, 0)
    (tmp_path / "other").write_bytes(bytes(10 * NBYTES))
    (tmp_path / "other").replace(locations[0][0].file)
    assert read(store, 0, 1) == record(0, 1)


def test_host_memory_serves_what_it_holds_when_the_file_is_gone(locations):
    store = RecordStore(locations, host_memory=2**30)
    for expert in range(EXPERTS):
        read(store, 0, expert)
    truncate(locations[0][0].file)
    assert [read(store, 0, expert) for expert in range(EXPERTS)] == [
        record(0, expert) for expert in range(EXPERTS)
    ]


@pytest.mark.parametrize("budget", [0, NBYTES - 1, NBYTES, 2 * NBYTES + 1, 2**30])
def test_host_memory_holds_as_many_records_as_its_budget_and_no_more(locations, budget):
    store = RecordStore(locations, budget)
    for _ in range(2):
        for expert in range(EXPERTS):
            read(store, 0, expert)
    truncate(locations[0][0].file)
    assert sum(is_readable(store, 0, expert) for expert in range(EXPERTS)) == min(
        budget // NBYTES, EXPERTS
    )


def is_readable(store: RecordStore, layer: int, expert: int) -> bool:
    try:
        return read(store, layer, expert) == record(layer, expert)
    except CheckpointError:
        return False


def test_what_host_memory_holds_is_a_copy_of_its_own(locations):
    store = RecordStore(locations, host_memory=2**30)
    buffer = torch.zeros(NBYTES, dtype=torch.uint8)
    store.read(0, 0, buffer)
    buffer.fill_(99)
    assert read(store, 0, 0) == record(0, 0)


@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_no_file_stays_open_after_a_store_is(locations, end):
    before = open_files()
    store = RecordStore(locations)
    read(store, 0, 0)
    read(store, 1, 0)
    if end == "closed":
        store.close()
    else:
        del store
    assert open_files() == before
