"""A machine's hardware is read from the system, and printed as a table."""

import os

import psutil
import torch

from mixoff import this_hardware
from mixoff.planning.free_memory import FreeMemory
from support.machines import GIB, NO_GPU, T4


def test_this_hardware_has_the_systems_numbers(tmp_path):
    hardware = this_hardware(tmp_path / "no" / "such folder")
    assert hardware.host_nbytes == psutil.virtual_memory().total
    assert 0 < hardware.free_host_nbytes <= hardware.host_nbytes
    assert hardware.free_disk_nbytes > 0
    assert 1 <= hardware.cores <= os.cpu_count()
    assert (hardware.gpu is not None) == torch.cuda.is_available()


def test_a_machine_is_printed_as_a_table_of_its_parts():
    assert str(T4).splitlines() == [
        "GPU         Tesla T4",
        "GPU memory  14.70 GiB free of 15.00 GiB",
        "memory      11.00 GiB free of 12.70 GiB",
        "disk        70.00 GiB free",
        "cores       2",
    ]
    assert str(NO_GPU).splitlines()[:2] == [
        "GPU         none that torch finds",
        "memory      11.00 GiB free of 12.70 GiB",
    ]


def test_memory_free_for_a_run_is_the_gpus_where_there_is_one():
    assert T4.free == FreeMemory(host=11 * GIB, device=int(14.7 * GIB))
    assert NO_GPU.free == FreeMemory(host=11 * GIB, device=11 * GIB)
    assert (T4.device, NO_GPU.device) == ("cuda", "cpu")
