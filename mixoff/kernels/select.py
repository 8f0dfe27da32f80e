"""Which kernels multiply on a device: those asked for, or the fastest that can be had."""

import logging
from functools import cache
from importlib import import_module
from typing import Any

import torch

from mixoff.errors import ConfigError
from mixoff.kernels.base import Kernels, TorchKernels
from mixoff.kernels.packed import CPUKernels, PackedKernels

KERNELS = ("auto", "cpu", "torch", "triton")

_FASTEST = {"cpu": "cpu", "cuda": "triton"}
_LEAST_CAPABILITY = (7, 0)  # of what Triton compiles for

_log = logging.getLogger(__name__)


def kernels_named(name: str, device: torch.device | str = "cpu") -> Kernels:
    """Return who multiplies: "torch", "cpu", "triton", or "auto" for what is fastest on a device.

    Raises
    ------
    ConfigError
        If there is none of that name, or it can't be had.
    """
    device = torch.device(device)
    if name not in KERNELS:
        raise ConfigError(f"kernels={name!r}: give one of {', '.join(KERNELS)}.")
    chosen = _FASTEST.get(device.type, "torch") if name == "auto" else name
    if chosen == "torch":
        return TorchKernels()
    try:
        return _compiled(chosen, device)
    except _Unusable as error:
        if name == "auto":
            _log.log(error.level, "%s: plain torch multiplies.", error)
            return TorchKernels()
        raise ConfigError(f"kernels={name!r}: {error}: {error.way_out}.") from error


@cache
def cpu_module(name: str) -> Any | None:
    """Return the module of that name in `mixoff.kernels.cpu`; None if llvmlite is missing."""
    try:
        return import_module(f"mixoff.kernels.cpu.{name}")
    except ImportError:
        return None


def kernels_planned(device: torch.device) -> Kernels:
    """Return who would multiply on a device, which needn't be here: then plain torch."""
    here = device.type == "cpu" or torch.cuda.is_available()
    return kernels_named("auto", device) if here else TorchKernels()


def host_kernels(name: str) -> Kernels:
    """Return who multiplies on the CPU beside a device that has the kernels of a name."""
    return kernels_named("torch" if name == "torch" else "auto", "cpu")


class _Unusable(Exception):
    """Why kernels can't be had, how much that matters, and what to do about it."""

    def __init__(self, reason: str, way_out: str, *, level: int = logging.INFO) -> None:
        super().__init__(reason)
        self.way_out = way_out
        self.level = level


def _compiled(name: str, device: torch.device) -> Kernels:
    """Return the kernels "cpu" or "triton"."""
    if name == "triton":
        return _triton_kernels(device)
    try:
        modules = ("mixoff.kernels.cpu.operations", "mixoff.kernels.cpu.one_token")
        return CPUKernels(*map(import_module, modules))
    except ImportError as error:  # llvmlite is missing, or too old
        reason = f"llvmlite can't be used ({error})"
        raise _Unusable(reason, "pip install mixoff[cpu]") from error


def _triton_kernels(device: torch.device) -> Kernels:
    try:
        operations = import_module("mixoff.kernels.triton.operations")
    except ImportError as error:
        reason = f"triton can't be imported ({error})"
        raise _Unusable(reason, "pip install mixoff[triton]", level=logging.WARNING) from error
    if operations.interpreted():
        return PackedKernels(operations, device.type)
    if device.type != "cuda":
        raise _Unusable(f"Triton's kernels run on GPUs, not on {device}", "give device='cuda'")
    capability = torch.cuda.get_device_capability(device)
    failure = None
    if capability < _LEAST_CAPABILITY:
        failure = "compute capability {}.{} is below {}.{}".format(*capability, *_LEAST_CAPABILITY)
    failure = failure or operations.failure(device)
    if failure:
        reason = f"Triton can't be used on {device} ({failure})"
        raise _Unusable(reason, "give kernels='torch'", level=logging.WARNING)
    return PackedKernels(operations, device.type)
