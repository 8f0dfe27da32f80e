"""A model on a fake device, with host memory in which the CPU computes misses."""

from pathlib import Path
from typing import Any

from mixoff.cache.cache import ExpertCache
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.config import OffloadConfig
from mixoff.kernels import kernels_named
from mixoff.models.build import build_model
from mixoff.models.replace import attach, give_kernels
from mixoff.tiers.disk import DiskReader
from mixoff.tiers.gpu import GpuMover
from mixoff.tiers.host import PinnedMemory
from mixoff.tiers.queue import Transfers
from mixoff.tiers.store import RecordStore
from support.fake_device import ComputingDevice


def build(
    folder: Path,
    slots: int,
    *,
    miss: str = "compute",
    host_buffers: int | None = None,
    inclusive: bool = True,
    threads: int = 1,
    seed: int = 0,
    kernels: str = "torch",
    **options: Any,
) -> tuple[Any, ExpertCache]:
    """Return a model whose slots are on a fake device, and its cache.

    By default host memory has a buffer for every record.
    """
    checkpoint = open_checkpoint(folder)
    layouts = checkpoint.expert_layouts()
    experts = checkpoint.num_experts
    offload = OffloadConfig(offload_per_layer=experts - slots, **options)
    model, unused = build_model(folder, offload, kernels=kernels)
    unused.close()
    device = ComputingDevice(seed)
    mover = GpuMover(
        RecordStore(checkpoint.expert_locations(), DiskReader("buffered"), layouts),
        Transfers(threads),
        device,
        nbytes=max(layout.stride for layer in layouts for layout in layer),
        host_buffers=len(layouts) * experts if host_buffers is None else host_buffers,
        inclusive=inclusive,
        pinned=PinnedMemory(device, budget=0),
    )
    cache = ExpertCache(
        mover,
        layouts,
        slots_per_layer=slots,
        policy=offload.policy,
        staging=offload.staging,
        miss=miss,
    )
    attach(model, cache, offload)
    give_kernels(model, cache, kernels_named(kernels), kernels_named(kernels))
    return model, cache
