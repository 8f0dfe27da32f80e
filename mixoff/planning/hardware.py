"""A machine's GPU, memory, disk and cores. Reads them from the system; decides nothing."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants

from mixoff.planning.free_memory import FreeMemory, free_host_memory
from mixoff.units import format_nbytes


@dataclass(frozen=True)
class Hardware:
    """The hardware to run a model on. `print` shows it as a table.

    Parameters
    ----------
    gpu
        The GPU's name; None if torch finds none.
    gpu_nbytes, free_gpu_nbytes
        The GPU's memory, and how much of it is free; 0 without a GPU.
    host_nbytes, free_host_nbytes
        Host memory, and how much of it this process can still allocate.
    free_disk_nbytes
        Free bytes of the disk that holds the hub's cache.
    cores
        Cores that this process may use.
    """

    gpu: str | None
    gpu_nbytes: int
    free_gpu_nbytes: int
    host_nbytes: int
    free_host_nbytes: int
    free_disk_nbytes: int
    cores: int

    @property
    def device(self) -> str:
        """The device to compute on: "cuda" with a GPU, else "cpu"."""
        return "cuda" if self.gpu else "cpu"

    @property
    def free(self) -> FreeMemory:
        """The free memory, in the form that `mixoff.plan_memory` takes."""
        device = self.free_gpu_nbytes if self.gpu else self.free_host_nbytes
        return FreeMemory(host=self.free_host_nbytes, device=device)

    def __str__(self) -> str:
        memory = f"{_free(self.free_gpu_nbytes)} of {format_nbytes(self.gpu_nbytes)}"
        rows = [
            ("GPU", self.gpu or "none that torch finds"),
            *([("GPU memory", memory)] if self.gpu else []),
            ("memory", f"{_free(self.free_host_nbytes)} of {format_nbytes(self.host_nbytes)}"),
            ("disk", _free(self.free_disk_nbytes)),
            ("cores", str(self.cores)),
        ]
        return "\n".join(f"{name:<12}{value}" for name, value in rows)


def this_hardware(folder: str | Path | None = None) -> Hardware:
    """Return the hardware of this machine that this process may use.

    Parameters
    ----------
    folder
        A folder on the disk whose free bytes are counted; it need not exist yet. By default the
        hub's cache.
    """
    gpu, free_gpu, gpu_nbytes = None, 0, 0
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name()
        free_gpu, gpu_nbytes = torch.cuda.mem_get_info()
    return Hardware(
        gpu=gpu,
        gpu_nbytes=gpu_nbytes,
        free_gpu_nbytes=free_gpu,
        host_nbytes=int(psutil.virtual_memory().total),
        free_host_nbytes=free_host_memory(),
        free_disk_nbytes=_free_disk(Path(folder or constants.HF_HUB_CACHE)),
        cores=_cores(),
    )


def _free(nbytes: int) -> str:
    return f"{format_nbytes(nbytes)} free"


def _free_disk(folder: Path) -> int:
    folder = folder.expanduser().absolute()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    return shutil.disk_usage(existing).free


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows don't have sched_getaffinity
        return os.cpu_count() or 1
