"""Free memory is what the system has available, or less where a container limits it."""

from pathlib import Path

import psutil
import pytest
import torch

from mixoff.planning.free_memory import (
    FreeMemory,
    free_device_memory,
    free_host_memory,
    free_memory,
    headroom,
)

MIB = 2**20


class FakeRoot:
    """A file tree with the control groups that a test adds."""

    def __init__(self, root: Path, membership: str) -> None:
        self.root = root
        self.write("proc/self/cgroup", membership)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def version_1(self, group: str, limit: int, usage: int, droppable: int = 0) -> None:
        folder = f"sys/fs/cgroup/memory/{group}"
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{usage}\n")
        stat = f"inactive_file 7\ntotal_inactive_file {droppable}\ntotal_active_file 9\n"
        self.write(f"{folder}/memory.stat", stat)

    def version_2(self, group: str, limit: int | str, usage: int, droppable: int = 0) -> None:
        folder = f"sys/fs/cgroup/{group}"
        self.write(f"{folder}/memory.max", f"{limit}\n")
        self.write(f"{folder}/memory.current", f"{usage}\n")
        self.write(f"{folder}/memory.stat", f"anon 1\ninactive_file {droppable}\nactive_file 9\n")

    def free(self) -> int:
        return free_host_memory(self.root)


def test_unused_and_droppable_bytes_of_a_version_2_group_are_free(tmp_path):
    fake = FakeRoot(tmp_path, "0::/work\n")
    fake.version_2("work", 100 * MIB, 70 * MIB, 20 * MIB)
    assert fake.free() == 50 * MIB


def test_unused_and_droppable_bytes_of_a_version_1_group_are_free(tmp_path):
    fake = FakeRoot(tmp_path, "9:name=systemd:/\n4:cpu,memory:/work\n0::/\n")
    fake.version_1("work", 100 * MIB, 70 * MIB, 20 * MIB)
    assert fake.free() == 50 * MIB


@pytest.mark.parametrize("inner", [60 * MIB, 10 * MIB])
def test_the_tightest_of_all_enclosing_groups_counts(tmp_path, inner):
    fake = FakeRoot(tmp_path, "0::/outer/middle/inner\n")
    fake.version_2("outer", 100 * MIB, 60 * MIB)
    fake.version_2("outer/middle", "max", 60 * MIB)
    fake.version_2("outer/middle/inner", inner, 0)
    assert fake.free() == min(inner, 40 * MIB)


def test_in_a_container_the_topmost_group_counts_if_its_own_is_not_visible(tmp_path):
    fake = FakeRoot(tmp_path, "4:memory:/docker/0123abcd\n")
    fake.version_1("", 100 * MIB, 70 * MIB)
    assert fake.free() == 30 * MIB


def test_a_group_above_the_visible_ones_is_not_followed(tmp_path):
    fake = FakeRoot(tmp_path / "root", "0::/../../work\n")
    fake.write("sys/fs/cgroup/cgroup.procs", "")
    fake.write("../work/memory.max", "1")
    fake.version_2("", 100 * MIB, 70 * MIB)
    assert fake.free() == 30 * MIB


def test_a_group_over_its_limit_leaves_nothing(tmp_path):
    fake = FakeRoot(tmp_path, "0::/work\n")
    fake.version_2("work", 100 * MIB, 101 * MIB)
    assert fake.free() == 0


@pytest.mark.parametrize(
    "membership", ["", "0::/\n", "4:memory:/\n", "nonsense\n", "0::/no/such/group\n", "1:cpu:/work"]
)
def test_without_a_limit_all_available_memory_is_free(tmp_path, membership):
    fake = FakeRoot(tmp_path, membership)
    fake.version_1("", 2**63 - 4096, 70 * MIB)
    fake.version_2("", "max", 70 * MIB)
    available = psutil.virtual_memory().available
    assert fake.free() == pytest.approx(available, rel=0.1)


def test_free_memory_is_positive_and_at_most_the_machines():
    assert 0 < free_host_memory() <= psutil.virtual_memory().total


def test_a_cpus_memory_is_host_memory():
    free = free_memory("cpu")
    assert free.host == free.device
    assert free_device_memory("cpu") == pytest.approx(free_host_memory(), rel=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_memory_of_a_gpu_that_is_not_here_is_unknown():
    assert free_memory("cuda") == FreeMemory(host=None, device=None)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_memory_of_its_own():
    assert free_memory("cuda").device == free_device_memory("cuda") > 0


def test_host_memory_is_known_beside_an_unknown_device():
    assert free_memory("meta").host
    assert free_memory("meta").device is None


@pytest.mark.parametrize(
    ("free", "left"), [(0, 256 * MIB), (2560 * MIB, 256 * MIB), (100 * 2**30, 10 * 2**30)]
)
def test_a_tenth_stays_free_and_256_mib_at_least(free, left):
    assert headroom(free) == left
