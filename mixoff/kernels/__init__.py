"""y = x W^T straight from packed weights, and who computes it on which device.

`multiplying` has who multiplies, `choice` says who does here; `cpu` and `one_token` have the
operations in code that is compiled for this machine at run time, `cuda` in Triton, for GPUs.
Kernels know the layout of packed weights (`layout`) and what quantizations use it; no models.
"""

from mixoff.kernels.base import GatedActivation, Kernels, TorchKernels
from mixoff.kernels.packed import CPUKernels
from mixoff.kernels.select import (
    KERNELS,
    cpu_module,
    host_kernels,
    kernels_named,
    kernels_planned,
)

__all__ = [
    "KERNELS",
    "CPUKernels",
    "GatedActivation",
    "Kernels",
    "TorchKernels",
    "cpu_module",
    "host_kernels",
    "kernels_named",
    "kernels_planned",
]
