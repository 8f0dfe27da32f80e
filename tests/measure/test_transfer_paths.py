"""Each route moves the records that it is given, along the paths that it names."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from mixoff.measure.transfer_paths import FromDisk, Route, ToDevice, WithinHost
from mixoff.tiers.queue import Transfers
from support.fake_device import FakeDevice

NBYTES = 5000  # no whole number of pages
ROUTES: dict[str, Callable[[Path, Transfers], Route]] = {
    "direct": lambda file, threads: FromDisk(file, NBYTES, 4, threads, "direct"),
    "buffered": lambda file, threads: FromDisk(file, NBYTES, 4, threads, "buffered"),
    "pinned": lambda file, threads: ToDevice(file, NBYTES, threads, FakeDevice(3), pinned=True),
    "pageable": lambda file, threads: ToDevice(file, NBYTES, threads, FakeDevice(3), pinned=False),
    "copied": lambda file, threads: WithinHost(NBYTES, threads),
}


@pytest.fixture
def threads() -> Iterator[Transfers]:
    with closing(Transfers(3)) as transfers:
        yield transfers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "records"
    path.write_bytes(bytes(range(256)) * 32 * 4)  # 4 records of two pages
    return path


@pytest.mark.parametrize("method", ROUTES)
def test_every_path_takes_some_time_each_time_that_records_move(file, threads, method):
    with closing(ROUTES[method](file, threads)) as route:
        for _ in range(3):
            seconds = route.move([2, 0, 1])
            assert len(seconds) == len(route.paths)
            assert min(seconds) > 0


@pytest.mark.parametrize("method", ["direct", "buffered"])
def test_what_is_read_is_what_the_file_holds(file, threads, method):
    with closing(FromDisk(file, NBYTES, 4, threads, method)) as route:
        route.move([3, 1])
        content = file.read_bytes()
        for record, buffer in zip([3, 1], route._buffers, strict=True):
            expected = content[record * 8192 : record * 8192 + NBYTES]
            assert bytes(buffer.memory[:NBYTES].numpy()) == expected


def test_records_are_read_from_disk_once_and_then_copied_from_host_memory(file, threads):
    device = FakeDevice(5)
    with closing(ToDevice(file, NBYTES, threads, device, pinned=True)) as route:
        route.move([0, 2])
        file.write_bytes(b"\0" * file.stat().st_size)  # the file isn't read again
        route.move([2, 0])
        device.run_all()
        expected = torch.arange(256, dtype=torch.uint8).repeat(32)[:NBYTES]
        for buffer in route._held.values():
            assert torch.equal(buffer.memory[:NBYTES], expected)
