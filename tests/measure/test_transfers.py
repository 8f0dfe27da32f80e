"""Transfers are measured on every path of a machine, and no file is left behind."""

import pytest

from mixoff.errors import ConfigError
from mixoff.measure import transfers
from mixoff.measure.transfer_paths import CAN_DROP
from support.fake_device import FakeDevice

SMALL = {"sizes": (4096, 5000), "in_flight": (1, 3), "rounds": 2, "seconds": 0.0}
PATH = ["source", "target", "method", "page_cache"]
FROM_DISK = [
    ("disk", "host", "buffered", "in it"),
    ("disk", "host", "direct", "past it"),
    *[("disk", "host", "buffered", "dropped from it")] * CAN_DROP,
]
LINKED = [
    (*tiers, method, "no file")
    for tiers in (("host", "device"), ("device", "host"))
    for method in ("pinned", "pageable")
]


def test_a_machine_without_gpu_has_paths_from_disk_and_within_host_memory_only(tmp_path):
    table = transfers(folder=tmp_path, **SMALL)
    paths = {tuple(path) for path in table[PATH].values} | {
        ("disk", "host", "direct", "past it")  # not every file system has it
    }
    assert paths == {*FROM_DISK, ("host", "host", "copied", "no file")}
    assert len(table) == len(table.drop_duplicates([*PATH, "in_flight", "nbytes"]))


def test_a_device_with_memory_of_its_own_has_paths_in_both_directions(tmp_path):
    table = transfers(FakeDevice(1), folder=tmp_path, **SMALL)
    paths = {tuple(path) for path in table[PATH].values}
    assert paths.issuperset(LINKED)


def test_rates_are_the_bytes_in_flight_over_the_time_of_the_last_record(tmp_path):
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


def test_pinned_memory_is_noted_and_not_measured_where_the_driver_refuses_it(tmp_path):
    table = transfers(FakeDevice(1, pins=0), folder=tmp_path, **SMALL)
    assert "pinned" not in set(table["method"])
    assert any("refuses to pin" in note for note in table.attrs["notes"])


@pytest.mark.parametrize(
    "wrong", [{"sizes": []}, {"sizes": [0]}, {"in_flight": [1.5]}, {"rounds": 0}], ids=str
)
def test_numbers_below_one_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"give whole numbers from 1"):
        transfers(**wrong)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="give another folder"):
        transfers(folder=tmp_path / "nowhere", **SMALL)
