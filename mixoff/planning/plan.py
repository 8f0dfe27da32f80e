"""What lies where in a run: a plan made before anything is loaded. Knows sizes; moves nothing."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from mixoff.checkpoints.formats import PlannedCheckpoint
from mixoff.checkpoints.quantization_config import stored_dtype
from mixoff.config import Io, OffloadConfig
from mixoff.errors import ConfigError
from mixoff.kernels import Kernels, kernels_planned
from mixoff.planning.budgets import (
    HostBudget,
    Needs,
    PlannedTier,
    fit_host,
    fit_slots,
    pinned_nbytes,
    refuse_too_much,
)
from mixoff.planning.free_memory import FreeMemory, free_memory
from mixoff.tiers.aligned import PAGE
from mixoff.tiers.disk import choose_io
from mixoff.tiers.gpu import bounce_buffers
from mixoff.tiers.queue import THREADS
from mixoff.tiers.record import RecordLayout

if TYPE_CHECKING:
    import pandas as pd

PREFILL_TOKENS = 512  # tokens of a prompt that a chat computes at once: bounds activations
_DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a run takes, tier by tier; `total` is what device and host memory hold together.

    Parameters
    ----------
    device
        The kind of device that is planned for. A CPU's memory is host memory.
    non_expert
        Attention, embeddings, norms, gates and head.
    kv_cache
        Keys and values of a whole context.
    workspace
        What is dequantized at a time, a whole matrix at most, and the activations of a piece of
        prefill.
    staging
        Device buffers that belong to no layer, into which experts are copied.
    slots
        Device buffers for experts: ``slots_per_layer`` in every layer.
    host
        Records in host memory.
    bounce
        Host buffers through which records pass from disk to a GPU.
    pinned
        How much of `host` and `bounce` is to be pinned; no part of the total.
    disk
        The experts on disk, all of them; no part of the total.
    host_tier
        Whether host memory keeps the records that are on the device, too (``"inclusive"``) or not
        (``"exclusive"``); ``"none"`` without any.
    experts_on_device, experts_on_host, experts_on_disk
        Where the model's experts lie once the cache is warm, each counted once.
    io, io_reason
        How the disk is read, and why so; unknown for a machine that isn't this one.
    context
        Tokens that the KV cache holds.
    expert_nbytes, buffer_nbytes
        An expert's record, and a buffer that holds any of them.
    """

    device: str
    non_expert: int
    kv_cache: int
    workspace: int
    staging: int
    slots: int
    host: int
    bounce: int
    pinned: int
    disk: int
    host_tier: PlannedTier
    experts_on_device: int
    experts_on_host: int
    experts_on_disk: int
    io: Io | Literal["unknown"]
    io_reason: str
    context: int
    slots_per_layer: int
    expert_nbytes: int
    buffer_nbytes: int

    @property
    def device_nbytes(self) -> int:
        """Bytes on the device."""
        return self.non_expert + self.kv_cache + self.workspace + self.staging + self.slots

    @property
    def host_nbytes(self) -> int:
        """Bytes in host memory, beside those on a device that is the CPU."""
        return self.host + self.bounce

    @property
    def total(self) -> int:
        """Bytes of memory in all."""
        return self.device_nbytes + self.host_nbytes

    def to_frame(self) -> "pd.DataFrame":
        """Return what lies where, as `mixoff.plots.memory` draws it: a row a part, in bytes.

        Columns: tier (device, host or disk), part, nbytes. The disk holds all experts, those that
        are in memory too.
        """
        import pandas as pd

        parts = ("slots", "staging", "non_expert", "kv_cache", "workspace")
        rows = [("device", part, getattr(self, part)) for part in parts]
        rows += [("host", "records", self.host), ("host", "bounce", self.bounce)]
        rows += [("disk", "experts", self.disk)]
        return pd.DataFrame(rows, columns=["tier", "part", "nbytes"])


def compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the type to compute in: float32 for float16 on a CPU, where float16 is slow."""
    return torch.float32 if device.type == "cpu" and stored is torch.float16 else stored


def plan_memory(
    checkpoint: PlannedCheckpoint,
    offload: OffloadConfig,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    context: int | None = None,
    free: FreeMemory | None = None,
    kernels: Kernels | None = None,
) -> MemoryPlan:
    """Return what a run of this checkpoint puts where, and how many bytes that takes.

    Parameters
    ----------
    device, dtype
        As `mixoff.build_model` takes them. The device needn't be here.
    context
        Tokens that the KV cache holds: by default all that the model has positions for, 4,096 at
        most.
    free
        What memory is free; by default this machine's, if it has such a device.
    kernels
        Kernels for products with packed weights; by default those that `mixoff.build_model` uses.

    Raises
    ------
    ConfigError
        If `offload` can't be met by this model, or budgets are more than what is free.
    """
    device = torch.device(device)
    free = free or free_memory(device)
    _check_prefetch(offload, checkpoint.num_experts)
    kernels = kernels or kernels_planned(device)
    needs = _needs(checkpoint, offload, device, dtype, context, kernels)
    slots_per_layer = fit_slots(offload, needs, free)
    host = fit_host(offload, needs, slots_per_layer, free)
    refuse_too_much(offload, needs, slots_per_layer, host, free)
    return _plan(checkpoint, offload, device, needs, slots_per_layer, host, free)


def _plan(
    checkpoint: PlannedCheckpoint,
    offload: OffloadConfig,
    device: torch.device,
    needs: Needs,
    slots_per_layer: int,
    host: HostBudget,
    free: FreeMemory,
) -> MemoryPlan:
    resident = needs.layers * slots_per_layer
    on_host = min(host.buffers, needs.experts - resident)
    taken = host.nbytes + needs.bounce
    taken += 0 if needs.on_gpu else needs.device_nbytes(slots_per_layer)
    io, io_reason = _io(
        offload, checkpoint.experts_nbytes, None if free.host is None else free.host - taken
    )
    return MemoryPlan(
        device=device.type,
        non_expert=needs.non_expert,
        kv_cache=needs.kv_cache,
        workspace=needs.workspace,
        staging=needs.staging,
        slots=resident * needs.buffer,
        host=host.nbytes,
        bounce=needs.bounce,
        pinned=pinned_nbytes(offload, needs, host.nbytes, free),
        disk=checkpoint.experts_nbytes,
        host_tier=host.kind,
        experts_on_device=resident,
        experts_on_host=on_host,
        experts_on_disk=needs.experts - resident - on_host,
        io=io,
        io_reason=io_reason,
        context=needs.context,
        slots_per_layer=slots_per_layer,
        expert_nbytes=max(layout.nbytes for layout in _layouts(checkpoint)),
        buffer_nbytes=needs.buffer,
    )


def _layouts(checkpoint: PlannedCheckpoint) -> list[RecordLayout]:
    return [layout for layer in checkpoint.expert_layouts() for layout in layer]


def _check_prefetch(offload: OffloadConfig, num_experts: int) -> None:
    if offload.prefetch > num_experts:
        raise ConfigError(
            f"prefetch={offload.prefetch}: a layer of this model has {num_experts} experts: "
            f"give 0 to {num_experts}."
        )


def _io(offload: OffloadConfig, disk: int, free: int | None) -> tuple[Io | Literal["unknown"], str]:
    if offload.io != "auto":
        return offload.io, "as asked for"
    if free is None:
        return "unknown", "what is free on the machine that is planned for isn't known"
    return choose_io(disk, free)


def _needs(
    checkpoint: PlannedCheckpoint,
    offload: OffloadConfig,
    device: torch.device,
    dtype: torch.dtype | None,
    context: int | None,
    kernels: Kernels,
) -> Needs:
    config, on_gpu = checkpoint.config, device.type != "cpu"
    dtype = dtype or compute_dtype(stored_dtype(config), device)
    context = context or min(int(config["max_position_embeddings"]), _DEFAULT_CONTEXT)
    # A record may begin inside its first page.
    buffer = max(layout.stride for layout in _layouts(checkpoint)) + PAGE
    return Needs(
        non_expert=_non_expert_nbytes(checkpoint, dtype),
        kv_cache=_kv_nbytes_per_token(config) * dtype.itemsize * context,
        workspace=_workspace_nbytes(checkpoint, dtype, kernels),
        staging=offload.staging * buffer,
        bounce=bounce_buffers(THREADS) * buffer if on_gpu else 0,
        buffer=buffer,
        layers=checkpoint.num_layers,
        experts_per_layer=checkpoint.num_experts,
        context=context,
        on_gpu=on_gpu,
    )


def _non_expert_nbytes(checkpoint: PlannedCheckpoint, dtype: torch.dtype) -> int:
    tensors = checkpoint.non_expert.values()
    packed = sum(tensor.nbytes for tensor in tensors if tensor.dtype is torch.uint8)
    plain = sum(math.prod(t.shape) for t in tensors if t.dtype is not torch.uint8)
    return packed + plain * dtype.itemsize


def _kv_nbytes_per_token(config: Any) -> int:
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return 2 * int(config["num_hidden_layers"]) * kv_heads * head_dim


def _workspace_nbytes(checkpoint: PlannedCheckpoint, dtype: torch.dtype, kernels: Kernels) -> int:
    hidden = checkpoint.architecture.hidden_size
    inner = checkpoint.architecture.intermediate_size
    layouts = dict.fromkeys(_layouts(checkpoint))  # each once
    matrices = {(layout.quantization, shape) for layout in layouts for _, shape in layout.shapes}
    dequantized = max(kernels.workspace_nbytes(*matrix, dtype) for matrix in matrices)
    activations = PREFILL_TOKENS * (3 * inner + 4 * hidden) * dtype.itemsize
    return dequantized + activations
