"""y = x W^T straight from packed weights, and who computes it on which device.

`choice` says who; `cpu` has the operations in code that is compiled for this machine at run time,
and `cuda` has them in Triton, for GPUs.
Kernels know the layout of packed weights (`layout`) and what quantizations use it; no models.
"""

from mixoff.kernels.choice import (
    KERNELS,
    CPUKernels,
    Gate,
    Kernels,
    TorchKernels,
    kernels_beside,
    kernels_named,
    kernels_planned,
)

__all__ = [
    "KERNELS",
    "CPUKernels",
    "Gate",
    "Kernels",
    "TorchKernels",
    "kernels_beside",
    "kernels_named",
    "kernels_planned",
]
