"""From a run's plan to an expert cache: disk reader, transfers, tiers, slots. Knows no model."""

import torch

from mixoff.cache.cache import ExpertCache
from mixoff.checkpoints.formats import RunnableCheckpoint
from mixoff.config import OffloadConfig
from mixoff.planning.plan import MemoryPlan
from mixoff.tiers.aligned import PAGE
from mixoff.tiers.cpu import CpuMover
from mixoff.tiers.disk import DiskReader
from mixoff.tiers.gpu import GpuMover
from mixoff.tiers.host import PinnedMemory
from mixoff.tiers.mover import Mover
from mixoff.tiers.queue import Transfers
from mixoff.tiers.store import RecordStore
from mixoff.tiers.streams import Cuda


def expert_cache(
    checkpoint: RunnableCheckpoint, offload: OffloadConfig, plan: MemoryPlan, device: torch.device
) -> ExpertCache:
    """Return a cache of a checkpoint's experts, with the sizes that were planned.

    Raises
    ------
    CheckpointError
        If a record that starts on the device can't be read.
    """
    reader = DiskReader("direct" if plan.io == "direct" else "buffered")
    store = RecordStore(checkpoint.expert_locations(), reader, checkpoint.expert_layouts())
    cache = ExpertCache(
        _mover(store, plan, device),
        checkpoint.expert_layouts(),
        slots_per_layer=plan.slots_per_layer,
        policy=offload.policy,
        staging=offload.staging,
        device=device,
        miss=offload.miss,
    )
    cache.provenance |= {
        "checkpoint": checkpoint.path.name,
        "attention": checkpoint.scheme.attention.to_dict(),
        "experts": checkpoint.scheme.experts.to_dict(),
        "top_k": checkpoint.config.get("num_experts_per_tok"),
        "io_reason": plan.io_reason,
        "host_tier": plan.host_tier,
        "prefetch": offload.prefetch,
        "layers_ahead": offload.layers_ahead,
        "predictor": offload.predictor if isinstance(offload.predictor, str) else "of the user",
        "torch": torch.__version__,
    }
    return cache


def _mover(store: RecordStore, plan: MemoryPlan, device: torch.device) -> Mover:
    nbytes, host_buffers = plan.buffer_nbytes - PAGE, plan.host // plan.buffer_nbytes
    if device.type == "cpu":
        return CpuMover(store, Transfers(), nbytes=nbytes, kept=host_buffers)
    gpu = Cuda(device)
    return GpuMover(
        store,
        Transfers(),
        gpu,
        nbytes=nbytes,
        host_buffers=host_buffers,
        inclusive=plan.host_tier == "inclusive",
        pinned=PinnedMemory(gpu, plan.pinned),
    )
