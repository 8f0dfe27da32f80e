"""Keys and values of what a model has read, in memory with spare capacity. Knows no token ids.

transformers concatenates each token's keys and values with all earlier ones, a copy whose size
grows with the context. Here they are written behind the earlier ones, in place.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

_STEP = 64  # tokens: the least by which capacity grows


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers' own
    """One layer's keys and values, [B, H, T, d] each: views of buffers that they grow in.

    Cropped tokens are overwritten: a view of them must be copied to be kept.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)  # type: ignore[no-untyped-call]
        self._buffers: dict[str, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append tokens, and return all keys and values [B, H, T, d]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = self._appended(self.keys, key_states, "keys")
        values = self._appended(self.values, value_states, "values")
        self.keys, self.values = keys, values
        return keys, values

    def reset(self) -> None:
        """Reset as transformers' layers do, and free the buffers."""
        self._buffers.clear()
        super().reset()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_buffers": {}}  # a copy grows in buffers of its own

    def _appended(self, present: Tensor | None, new: Tensor, name: str) -> Tensor:
        assert present is not None, "the layer was initialized"
        start = _length(present)
        if start and _kind(present) != _kind(new):
            return torch.cat([present, new], dim=-2)  # promotes types or refuses shapes
        end = start + new.shape[-2]
        buffer = self._buffers.get(name)
        if buffer is None or not _is_prefix(present, buffer) or end > _length(buffer):
            buffer = new.new_empty(*new.shape[:-2], _capacity(end), new.shape[-1])
            if start:
                buffer[..., :start, :] = present
            self._buffers[name] = buffer
        buffer.narrow(-2, start, end - start).copy_(new)
        return buffer.narrow(-2, 0, end)


def _capacity(tokens: int) -> int:
    """Return how many tokens get memory: at most a quarter, or 63 tokens, more than are needed.

    A power of two, from 64 on, gets just itself.
    """
    step = max(_STEP, 1 << (tokens.bit_length() - 1) >> 2)
    return -(-tokens // step) * step


def _length(tensor: Tensor) -> int:
    return tensor.shape[-2] if tensor.numel() else 0


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape[:-2], tensor.shape[-1], tensor.dtype, tensor.device


def _is_prefix(tensor: Tensor, buffer: Tensor) -> bool:
    """Return whether a tensor is a view of a buffer's first tokens, so that it can grow there."""
    if _kind(tensor) != _kind(buffer):
        return False
    return tensor.is_set_to(buffer.narrow(-2, 0, _length(tensor)))


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return an empty KV cache; layers with a sliding window stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
