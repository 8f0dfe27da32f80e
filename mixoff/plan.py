"""How many bytes lie in which tier. Knows sizes; moves nothing."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from mixoff.config import OffloadConfig, parse_nbytes
from mixoff.formats import AnyCheckpoint
from mixoff.quantization import Unquantized

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
    checkpoint: AnyCheckpoint,
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
    layouts = [layout for layer in checkpoint.expert_layouts() for layout in layer]
    stride = max(layout.stride for layout in layouts)
    disk = sum(place.nbytes for layer in checkpoint.expert_locations() for place in layer)
    return MemoryPlan(
        trunk=_trunk_nbytes(checkpoint, dtype),
        slots=checkpoint.num_layers * slots_per_layer * stride,
        staging=0 if device.type == "cpu" else stride,
        host=min(parse_nbytes(offload.host_memory), disk),
        kv_cache=_kv_nbytes_per_token(config) * dtype.itemsize * context,
        workspace=_workspace_nbytes(checkpoint, dtype),
        disk=disk,
        context=context,
        slots_per_layer=slots_per_layer,
        expert_nbytes=max(layout.nbytes for layout in layouts),
    )


def _stored_dtype(config: Any) -> torch.dtype:
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return getattr(torch, str(name))  # type: ignore[no-any-return]


def _trunk_nbytes(checkpoint: AnyCheckpoint, dtype: torch.dtype) -> int:
    tensors = checkpoint.trunk.values()
    packed = sum(tensor.nbytes for tensor in tensors if tensor.dtype is torch.uint8)
    plain = sum(math.prod(t.shape) for t in tensors if t.dtype is not torch.uint8)
    return packed + plain * dtype.itemsize


def _kv_nbytes_per_token(config: Any) -> int:
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return 2 * int(config["num_hidden_layers"]) * kv_heads * head_dim


def _workspace_nbytes(checkpoint: AnyCheckpoint, dtype: torch.dtype) -> int:
    hidden, inner = (
        int(checkpoint.config["hidden_size"]),
        int(checkpoint.config["intermediate_size"]),
    )
    layouts = [layout for layer in checkpoint.expert_layouts() for layout in layer]
    weights = max(math.prod(shape) for layout in layouts for _, shape in layout.shapes)
    experts = checkpoint.scheme.experts
    if isinstance(experts, Unquantized):
        matrix = 0 if getattr(torch, experts.dtype) is dtype else weights * dtype.itemsize
    else:
        # float32 codes, unpacked plane by plane, and a copy in another type
        matrix = weights * 5 + (0 if dtype is torch.float32 else weights * dtype.itemsize)
    activations = PREFILL_TOKENS * (3 * inner + 4 * hidden) * dtype.itemsize
    return matrix + activations
