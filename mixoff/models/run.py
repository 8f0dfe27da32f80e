"""Everything that a model is built from, prepared before anything is loaded. Knows no modules."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mixoff.checkpoints.formats import RunnableCheckpoint, open_checkpoint
from mixoff.config import OffloadConfig
from mixoff.errors import ConfigError
from mixoff.hub import named_checkpoint
from mixoff.kernels import Kernels, host_kernels, kernels_named
from mixoff.planning.plan import MemoryPlan, plan_memory


@dataclass(frozen=True)
class Run:
    """A checkpoint and how it is run, as `prepare` returns it: checked, and nothing is loaded.

    Parameters
    ----------
    checkpoint
        The opened checkpoint.
    offload
        Where experts are kept, and which are evicted.
    plan
        How many bytes lie where.
    device
        Where the non-expert parameters and the cache's slots lie.
    dtype
        The type to compute in; None for the checkpoint's own.
    kernels, host_kernels
        Kernels for products with packed weights on the device, and in host memory beside it.
    """

    checkpoint: RunnableCheckpoint
    offload: OffloadConfig
    plan: MemoryPlan
    device: torch.device
    dtype: torch.dtype | None
    kernels: Kernels
    host_kernels: Kernels

    def planned_again(self) -> "Run":
        """Return the same run with a plan for the memory that is free now.

        Raises
        ------
        ConfigError
            If it is too little.
        """
        plan = plan_memory(
            self.checkpoint,
            self.offload,
            device=self.device,
            dtype=self.dtype,
            kernels=self.kernels,
        )
        return replace(self, plan=plan)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Run":
        return self  # transformers copies a model's settings, and a run in them never changes


def prepare(
    name_or_path: str | Path,
    offload: OffloadConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    kernels: str = "auto",
) -> Run:
    """Return a run of a checkpoint, which is opened and planned; parameters as for `build_model`.

    Raises
    ------
    CheckpointError
        If the checkpoint is missing, damaged or of another format.
    ConfigError
        If `offload` can't be met by this model or by what memory is free, or the device or the
        kernels can't be used.
    """
    checkpoint = open_checkpoint(named_checkpoint(name_or_path).folder)
    offload, device = offload or OffloadConfig(), _usable(device)
    chosen = kernels_named(kernels, device)
    plan = plan_memory(checkpoint, offload, device=device, dtype=dtype, kernels=chosen)
    return Run(checkpoint, offload, plan, device, dtype, chosen, host_kernels(kernels))


def _usable(device: str | torch.device) -> torch.device:
    """Return a device on which torch can make a tensor."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:  # unknown, or absent
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"device={str(device)!r}: {reason}; give cpu, or cuda with a GPU."
        ) from None
