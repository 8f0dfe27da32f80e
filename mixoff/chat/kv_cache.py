"""Keys and values of what a model has read, in memory with room for more. Knows no tokens.

transformers joins each token's keys and values to all that came before, and copies these each
time, the more the longer the context. Here they are written behind the others.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

_STEP = 64  # tokens, at least, by which memory grows


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers' own
    """One layer's keys and values, [B, H, T, d] each: views of the memory that they grow in.

    What was cropped is overwritten: who keeps views of it copies them first.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)  # type: ignore[no-untyped-call]
        self._rooms: dict[str, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add tokens, and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = self._with(self.keys, key_states, "keys")
        values = self._with(self.values, value_states, "values")
        self.keys, self.values = keys, values
        return keys, values

    def reset(self) -> None:
        """Do what transformers' layers do, and give up the memory."""
        self._rooms.clear()
        super().reset()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rooms": {}}  # a copy grows in memory of its own

    def _with(self, present: Tensor | None, new: Tensor, name: str) -> Tensor:
        assert present is not None, "it was made to hold tokens"
        start = _length(present)
        if start and _kind(present) != _kind(new):
            return torch.cat([present, new], dim=-2)  # which promotes or refuses
        end = start + new.shape[-2]
        room = self._rooms.get(name)
        if room is None or not _begins(present, room) or end > _length(room):
            room = new.new_empty(*new.shape[:-2], _room_for(end), new.shape[-1])
            if start:
                room[..., :start, :] = present
            self._rooms[name] = room
        room.narrow(-2, start, end - start).copy_(new)
        return room.narrow(-2, 0, end)


def _room_for(tokens: int) -> int:
    """Return how many tokens get memory: powers of two just that, others a quarter more at most."""
    step = max(_STEP, 1 << (tokens.bit_length() - 1) >> 2)
    return -(-tokens // step) * step


def _length(tensor: Tensor) -> int:
    return tensor.shape[-2] if tensor.numel() else 0


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape[:-2], tensor.shape[-1], tensor.dtype, tensor.device


def _begins(tensor: Tensor, room: Tensor) -> bool:
    """Return whether a tensor is the first tokens of a room, and more could stand behind them."""
    return _kind(tensor) == _kind(room) and tensor.is_set_to(room.narrow(-2, 0, _length(tensor)))


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return an empty cache of keys and values; sliding windows stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(one) is DynamicLayer else one for one in cache.layers]
    return cache
