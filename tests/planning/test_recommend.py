"""The recommended checkpoint is the largest that fits the machine, with the reason."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from mixoff import demo_path, recommend_checkpoint
from mixoff.known_models import MIXTRAL_OFFLOADING
from support.machines import GIB, NO_GPU, T4

# Of the released files: 256 experts of 66.1 MB, and 1.16 GiB of non-expert parameters.
WEIGHTS_GIB = 16.9


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty hub cache, and online mode."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


def put_in_cache(folder: Path, nbytes: int) -> None:
    """Put a sparse file of this many bytes into the checkpoint's blobs."""
    blobs = folder / f"models--{MIXTRAL_OFFLOADING.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / "0").open("wb") as file:
        file.truncate(nbytes)


def test_mixtral_is_recommended_for_a_t4_with_its_plan():
    recommended = recommend_checkpoint(T4)
    assert (recommended.name, recommended.device) == (MIXTRAL_OFFLOADING, "cuda")
    assert "Tesla T4" in recommended.reason
    # 12.9 GiB may be used: beside 1.6 GiB of non-expert data and 0.25 of staging there is room for
    # 5 experts of 61.9 MiB in each of 32 layers; the other 96 fit in host memory.
    assert "5 of a layer's 8 experts" in recommended.reason
    assert "96 of the other 96 in host memory" in recommended.reason


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (NO_GPU, "no GPU"),
        (replace(T4, free_gpu_nbytes=3 * GIB), "doesn't fit here: device_memory='auto'"),
        (replace(T4, free_disk_nbytes=10 * GIB), "of disk"),
    ],
    ids=["gpu", "gpu-memory", "disk"],
)
def test_the_demo_model_is_recommended_where_something_is_missing(machine, reason):
    recommended = recommend_checkpoint(machine)
    assert (recommended.name, recommended.device) == (str(demo_path()), "cpu")
    assert reason in recommended.reason
    assert str(recommended) == f"{recommended.name}: {recommended.reason}"


def test_offline_mixtral_is_recommended_only_from_the_cache(hub_cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in recommend_checkpoint(T4).reason
    put_in_cache(hub_cache, int(WEIGHTS_GIB * GIB))
    assert recommend_checkpoint(T4).name == MIXTRAL_OFFLOADING


def test_cached_files_need_no_free_disk(hub_cache):
    full = replace(T4, free_disk_nbytes=2 * GIB)
    assert recommend_checkpoint(full).name != MIXTRAL_OFFLOADING
    put_in_cache(hub_cache, int(WEIGHTS_GIB * GIB))
    assert recommend_checkpoint(full).name == MIXTRAL_OFFLOADING
