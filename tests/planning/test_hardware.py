"""What a machine has is told as it is, and decides which checkpoint is suggested."""

import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from huggingface_hub import constants

from mixoff import demo_path, recommend_checkpoint, this_hardware
from mixoff.known_models import MIXTRAL_OFFLOADING
from mixoff.planning import Hardware
from mixoff.planning.free_memory import FreeMemory

GIB = 1 << 30
WEIGHTS_GIB = (
    16.9  # of the released files: 256 experts of 66.1 MB, and 1.16 GiB of other parameters
)
# Free Colab: a T4, 12.7 GiB of memory, 2 cores.
T4 = Hardware(
    gpu="Tesla T4",
    gpu_nbytes=15 * GIB,
    free_gpu_nbytes=int(14.7 * GIB),
    host_nbytes=int(12.7 * GIB),
    free_host_nbytes=11 * GIB,
    free_disk_nbytes=70 * GIB,
    cores=2,
)
NO_GPU = replace(T4, gpu=None, gpu_nbytes=0, free_gpu_nbytes=0)


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the hub's cache be empty, and nobody have asked to stay offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


def put_in_cache(folder: Path, nbytes: int) -> None:
    """Put a file of so many bytes, which take no disk, where the checkpoint's blobs lie."""
    blobs = folder / f"models--{MIXTRAL_OFFLOADING.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / "0").open("wb") as file:
        file.truncate(nbytes)


def test_this_hardware_is_told_as_the_system_tells_it(tmp_path):
    found = this_hardware(tmp_path / "not" / "there yet")
    assert found.host_nbytes == psutil.virtual_memory().total
    assert 0 < found.free_host_nbytes <= found.host_nbytes
    assert found.free_disk_nbytes > 0
    assert 1 <= found.cores <= os.cpu_count()
    assert (found.gpu is not None) == torch.cuda.is_available()


def test_a_machine_is_printed_as_a_table_with_a_line_for_what_it_has():
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


def test_a_t4_gets_mixtral_and_is_told_what_lies_where():
    suggested = recommend_checkpoint(T4)
    assert (suggested.name, suggested.device) == (MIXTRAL_OFFLOADING, "cuda")
    assert "Tesla T4" in suggested.reason
    # 12.9 GiB may be used: 1.6 for what isn't experts and 0.25 staging leave room for 5 in each
    # of 32 layers, 61.9 MiB each; the other 96 fit host memory.
    assert "5 of a layer's 8 experts" in suggested.reason
    assert "96 of the other 96 in host memory" in suggested.reason


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (NO_GPU, "no GPU"),
        (replace(T4, free_gpu_nbytes=3 * GIB), "doesn't fit here: device_memory='auto'"),
        (replace(T4, free_disk_nbytes=10 * GIB), "of disk"),
    ],
)
def test_a_machine_without_room_gets_the_demo_model_and_is_told_why(machine, reason):
    suggested = recommend_checkpoint(machine)
    assert (suggested.name, suggested.device) == (str(demo_path()), "cpu")
    assert reason in suggested.reason
    assert str(suggested) == f"{suggested.name}: {suggested.reason}"


def test_offline_mixtral_is_suggested_only_when_it_is_in_the_cache(hub_cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in recommend_checkpoint(T4).reason
    put_in_cache(hub_cache, int(WEIGHTS_GIB * GIB))
    assert recommend_checkpoint(T4).name == MIXTRAL_OFFLOADING


def test_what_is_in_the_cache_needs_no_more_disk(hub_cache):
    full = replace(T4, free_disk_nbytes=2 * GIB)
    assert recommend_checkpoint(full).name != MIXTRAL_OFFLOADING
    put_in_cache(hub_cache, int(WEIGHTS_GIB * GIB))
    assert recommend_checkpoint(full).name == MIXTRAL_OFFLOADING
