"""Products y = x W^T straight from packed weights, on CPUs and GPUs.

Knows the layout of packed weights and the quantizations that use it; knows nothing of models. Read
`base.py` first: the interface, and the operations behind it. `select.py` chooses kernels for a
device; `cpu` has code that LLVM compiles at run time, `triton` has kernels for GPUs.
"""

from mixoff.kernels.base import GatedActivation, Kernels, TorchKernels
from mixoff.kernels.packed import CPUKernels
from mixoff.kernels.select import (
    KERNELS,
    attention_operations,
    host_kernels,
    kernels_named,
    kernels_planned,
    router_norm_operations,
)

__all__ = [
    "KERNELS",
    "CPUKernels",
    "GatedActivation",
    "Kernels",
    "TorchKernels",
    "attention_operations",
    "host_kernels",
    "kernels_named",
    "kernels_planned",
    "router_norm_operations",
]
