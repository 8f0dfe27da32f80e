"""Transfers are measured on the way that records take, and nothing is left behind."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from mixoff.errors import ConfigError
from mixoff.measure import transfers
from mixoff.measure.transfer_paths import CAN_DROP, FromDisk, Route, ToDevice, WithinHost
from mixoff.tiers.queue import Transfers
from support.fake_device import FakeDevice

NBYTES = 5000  # no whole number of pages
SMALL = {"sizes": (4096, NBYTES), "in_flight": (1, 3), "rounds": 2, "seconds": 0.0}
WAYS = ["source", "target", "method", "page_cache"]
FROM_DISK = [
    ("disk", "host", "buffered", "in it"),
    ("disk", "host", "direct", "past it"),
    *[("disk", "host", "buffered", "dropped from it")] * CAN_DROP,
]
LINKED = [
    (*way, method, "no file")
    for way in (("host", "device"), ("device", "host"))
    for method in ("pinned", "pageable")
]


@pytest.fixture
def several() -> Iterator[Transfers]:
    with closing(Transfers(3)) as transfers:
        yield transfers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "records"
    path.write_bytes(bytes(range(256)) * 32 * 4)  # 4 records of two pages
    return path


def test_a_machine_without_gpu_has_ways_from_disk_and_within_memory_only(tmp_path):
    table = transfers(folder=tmp_path, **SMALL)
    found = {tuple(way) for way in table[WAYS].values} | {
        ("disk", "host", "direct", "past it")  # not every file system has it
    }
    assert found == {*FROM_DISK, ("host", "host", "copied", "no file")}
    assert len(table) == len(table.drop_duplicates([*WAYS, "in_flight", "nbytes"]))


def test_a_device_with_memory_of_its_own_has_ways_there_and_back(tmp_path):
    table = transfers(FakeDevice(1), folder=tmp_path, **SMALL)
    found = {tuple(way) for way in table[WAYS].values}
    assert found.issuperset(LINKED)


def test_rates_are_all_bytes_in_flight_by_the_time_of_the_last(tmp_path):
    table = transfers(folder=tmp_path, **SMALL)
    moved = table["nbytes"] * table["in_flight"]
    for ms, rate in (("ms", ""), ("ms_min", "_max"), ("ms_max", "_min")):
        assert (table[f"gb_per_s{rate}"] * table[ms] * 1e6).tolist() == pytest.approx(moved)
    assert ((table["ms_min"] <= table["ms"]) & (table["ms"] <= table["ms_max"])).all()


def test_one_round_is_counted_however_little_time_there_is(tmp_path):
    table = transfers(folder=tmp_path, sizes=[1 << 20], rounds=50, seconds=0.0)
    assert (table["samples"] == 1).all()


def test_small_records_are_moved_several_times_a_round(tmp_path):
    table = transfers(folder=tmp_path, sizes=[4096], rounds=2, seconds=60.0)
    assert (table["samples"] == 16).all()


def test_no_file_is_left_behind(tmp_path):
    transfers(folder=tmp_path, **SMALL)
    assert not [*tmp_path.iterdir()]


def test_a_driver_that_pins_nothing_is_told_of_and_not_measured_as_if_it_did(tmp_path):
    table = transfers(FakeDevice(1, pins=0), folder=tmp_path, **SMALL)
    assert "pinned" not in set(table["method"])
    assert any("refuses to pin" in note for note in table.attrs["notes"])


@pytest.mark.parametrize(
    "wrong", [{"sizes": []}, {"sizes": [0]}, {"in_flight": [1.5]}, {"rounds": 0}]
)
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"give whole numbers from 1"):
        transfers(**wrong)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="give another folder"):
        transfers(folder=tmp_path / "nowhere", **SMALL)


def routes(file: Path, transfers: Transfers) -> list[Callable[[], Route]]:
    device = FakeDevice(3)
    disk = [
        lambda how=how: FromDisk(file, NBYTES, 4, transfers, how) for how in ("direct", "buffered")
    ]
    linked = [
        lambda pinned=pinned: ToDevice(file, NBYTES, transfers, device, pinned=pinned)
        for pinned in (True, False)
    ]
    return [*disk, *linked, lambda: WithinHost(NBYTES, transfers)]


@pytest.mark.parametrize("number", range(5))
def test_each_way_takes_some_time_however_often_records_go(file, several, number):
    with closing(routes(file, several)[number]()) as route:
        for _ in range(3):
            took = route.move([2, 0, 1])
            assert len(took) == len(route.ways)
            assert min(took) > 0


@pytest.mark.parametrize("how", ["direct", "buffered"])
def test_what_is_read_is_what_the_file_holds(file, several, how):
    with closing(FromDisk(file, NBYTES, 4, several, how)) as route:
        route.move([3, 1])
        content = file.read_bytes()
        for record, buffer in zip([3, 1], route._buffers, strict=True):
            expected = content[record * 8192 : record * 8192 + NBYTES]
            assert bytes(buffer.memory[:NBYTES].numpy()) == expected


def test_records_come_to_the_device_from_host_memory_once_they_are_there(file, several):
    device = FakeDevice(5)
    with closing(ToDevice(file, NBYTES, several, device, pinned=True)) as route:
        route.move([0, 2])
        file.write_bytes(b"\0" * file.stat().st_size)  # nobody reads it any more
        route.move([2, 0])
        device.run_all()
        expected = torch.arange(256, dtype=torch.uint8).repeat(32)[:NBYTES]
        for buffer in route._held.values():
            assert torch.equal(buffer.memory[:NBYTES], expected)
