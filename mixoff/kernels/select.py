"""The choice of kernels for a device: by name, or the fastest that this machine can run."""

import logging
from functools import cache

import torch

from mixoff.errors import ConfigError
from mixoff.kernels.base import AttentionOperations, Kernels, RouterNormOperations, TorchKernels
from mixoff.kernels.packed import CPUKernels, PackedKernels

KERNELS = ("auto", "cpu", "torch", "triton")

_FASTEST = {"cpu": "cpu", "cuda": "triton"}
_LEAST_CAPABILITY = (7, 0)  # of the GPUs that Triton compiles for

_log = logging.getLogger(__name__)


def kernels_named(name: str, device: torch.device | str = "cpu") -> Kernels:
    """Return the kernels "torch", "cpu" or "triton", or for "auto" the fastest for a device.

    Raises
    ------
    ConfigError
        If there are none of that name, or this machine can't run them.
    """
    device = torch.device(device)
    if name not in KERNELS:
        raise ConfigError(f"kernels={name!r}: give one of {', '.join(KERNELS)}.")
    chosen = _FASTEST.get(device.type, "torch") if name == "auto" else name
    if chosen == "torch":
        return TorchKernels()
    try:
        return _cpu_kernels() if chosen == "cpu" else _triton_kernels(device)
    except _Unusable as error:
        if name == "auto":
            _log.log(error.level, "%s: plain torch multiplies.", error)
            return TorchKernels()
        raise ConfigError(f"kernels={name!r}: {error}: {error.remedy}.") from error


def kernels_planned(device: torch.device) -> Kernels:
    """Return the kernels that a run on a device would use; plain torch for a GPU not present."""
    present = device.type == "cpu" or torch.cuda.is_available()
    return kernels_named("auto", device) if present else TorchKernels()


def host_kernels(name: str) -> Kernels:
    """Return the kernels of the CPU for a run whose device has the kernels of a name."""
    return kernels_named("torch" if name == "torch" else "auto", "cpu")


# Modules of compiled code are imported by full names: mypy then checks each against its protocol.


@cache
def attention_operations() -> AttentionOperations | None:
    """Return the kernel for one token's attention on this CPU; None if llvmlite is missing."""
    try:
        import mixoff.kernels.cpu.operations as operations
    except ImportError:
        return None
    return operations


@cache
def router_norm_operations() -> RouterNormOperations | None:
    """Return the kernels for one token's router and norms; None if llvmlite is missing."""
    try:
        import mixoff.kernels.cpu.router_norm as router_norm
    except ImportError:
        return None
    return router_norm


class _Unusable(Exception):
    """The reason why kernels can't be used, its level in the log, and a remedy."""

    def __init__(self, reason: str, remedy: str, *, level: int = logging.INFO) -> None:
        super().__init__(reason)
        self.remedy = remedy
        self.level = level


def _cpu_kernels() -> CPUKernels:
    try:
        import mixoff.kernels.cpu.one_token as one_token
        import mixoff.kernels.cpu.operations as operations
    except ImportError as error:  # llvmlite is missing, or too old
        reason = f"llvmlite can't be used ({error})"
        raise _Unusable(reason, "pip install mixoff[cpu]") from error
    return CPUKernels(operations, one_token)


def _triton_kernels(device: torch.device) -> Kernels:
    try:
        import mixoff.kernels.triton.operations as operations
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
