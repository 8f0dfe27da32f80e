"""How many bytes lie in which tier. Knows sizes; moves nothing."""

from dataclasses import dataclass
from typing import Any

import torch

from mixoff.checkpoint import Checkpoint
from mixoff.config import OffloadConfig, parse_nbytes
from mixoff.quantization import Unquantized
from mixoff.shards import DTYPES

PREFILL_TOKENS = 512  # tokens that a chat computes at once
_DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a run takes, tier by tier; `total` is what device and host memory hold together.

    Parameters
    ----------
    trunk
        Attention, embeddings, norms, gates and head.
    slots
        Device buffers for experts: ``slots_per_layer`` in every layer.
    staging
        The host buffer through which records pass on their way to a GPU.
    host
        The budget for records that host memory keeps.
    kv_cache
        Keys and values of a whole context.
    workspace
        The largest matrix, dequantized, and the activations of a piece of prefill.
    disk
        The experts on disk, all of them; no part of the total.
    """

    trunk: int
    slots: int
    staging: int
    host: int
    kv_cache: int
    workspace: int
    disk: int
    context: int
    slots_per_layer: int
    expert_nbytes: int

    @property
    def total(self) -> int:
        """Bytes of memory in all."""
        return self.trunk + self.slots + self.staging + self.host + self.kv_cache + self.workspace


def compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the type to compute in: float32 for float16 on a CPU, where float16 is slow."""
    return torch.float32 if device.type == "cpu" and stored is torch.float16 else stored


def plan_memory(
    checkpoint: Checkpoint,
    offload: OffloadConfig,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    context: int | None = None,
) -> MemoryPlan:
    """Return how many bytes a run of this checkpoint takes in each tier.

    Parameters
    ----------
    device, dtype
        As `mixoff.build_model` takes them.
    context
        Tokens that the KV cache holds: by default all that the model has positions for, 4,096 at
        most.

    Raises
    ------
    ConfigError
        If `offload` can't be met by this model.
    """
    config = checkpoint.config
    device = torch.device(device)
    dtype = dtype or compute_dtype(_stored_dtype(config), device)
    slots_per_layer = offload.slots_per_layer(checkpoint.num_experts)
    context = context or min(int(config["max_position_embeddings"]), _DEFAULT_CONTEXT)
    stride = checkpoint.expert_layout.stride
    experts = checkpoint.num_layers * checkpoint.num_experts
    return MemoryPlan(
        trunk=_trunk_nbytes(checkpoint, dtype),
        slots=checkpoint.num_layers * slots_per_layer * stride,
        staging=0 if device.type == "cpu" else stride,
        host=min(parse_nbytes(offload.host_memory), experts * stride),
        kv_cache=_kv_nbytes_per_token(config) * dtype.itemsize * context,
        workspace=_workspace_nbytes(checkpoint, dtype),
        disk=experts * stride,
        context=context,
        slots_per_layer=slots_per_layer,
        expert_nbytes=checkpoint.expert_layout.nbytes,
    )


def _stored_dtype(config: Any) -> torch.dtype:
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return getattr(torch, str(name))  # type: ignore[no-any-return]


def _trunk_nbytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    names = checkpoint.trunk_names
    entries = [e for s in checkpoint.shards.values() for n, e in s.tensors.items() if n in names]
    packed = sum(entry.nbytes for entry in entries if entry.dtype == "U8")
    plain = sum(e.nbytes // DTYPES[e.dtype].itemsize for e in entries if e.dtype != "U8")
    return packed + plain * dtype.itemsize


def _kv_nbytes_per_token(config: Any) -> int:
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return 2 * int(config["num_hidden_layers"]) * kv_heads * head_dim


def _workspace_nbytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    hidden, inner = (
        int(checkpoint.config["hidden_size"]),
        int(checkpoint.config["intermediate_size"]),
    )
    weights = 2 * inner * hidden
    experts = checkpoint.scheme.experts
    if isinstance(experts, Unquantized):
        matrix = 0 if getattr(torch, experts.dtype) is dtype else weights * dtype.itemsize
    else:
        # float32 codes, unpacked plane by plane, and a copy in another type
        matrix = weights * 5 + (0 if dtype is torch.float32 else weights * dtype.itemsize)
    activations = PREFILL_TOKENS * (3 * inner + 4 * hidden) * dtype.itemsize
    return matrix + activations
