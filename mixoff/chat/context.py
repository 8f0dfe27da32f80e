"""What a model has read of a conversation: token ids and their KV cache.

Knows ids and models; nothing of text, turns or replies.
"""

import inspect
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from mixoff.chat.kv_cache import GrowingLayer, growing_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Context:
    """The ids that a model has read so far, and the KV cache of exactly these ids.

    After an exception inside the model, at any point, it stays usable: the next `rewind` crops
    layers of the KV cache that are ahead of the ids, or discards the cache.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            self._options["logits_to_keep"] = 1
        self._forget()

    def rewind(self, ids: Sequence[int]) -> int:
        """Keep the prefix shared with `ids`, all but their last at most, and return its length."""
        pairs = zip(self.ids, ids[:-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if shared == 0 or not self._crop(shared):
            self._forget()
        return len(self.ids)

    def read(self, ids: Sequence[int]) -> Tensor:
        """Read more ids and return the logits [V] of the token after them."""
        new = torch.tensor([ids], device=self._model.device)  # [1, T]
        self._torn = True
        with torch.inference_mode():
            output = self._model(input_ids=new, past_key_values=self._cache, **self._options)
        self.ids.extend(ids)
        self._torn = False
        logits: Tensor = output.logits[0, -1]  # [V]
        return logits

    def _forget(self) -> None:
        self.ids: list[int] = []
        self._cache: DynamicCache = growing_cache(self._model.config)
        self._torn = False  # whether an exception may have left layers ahead of the ids

    def _crop(self, length: int) -> bool:
        """Shorten ids and layers to `length`; False if it is impossible (a sliding window)."""
        if length == len(self.ids) and not self._torn:
            return True
        layers: list[Any] = self._cache.layers
        if any(type(layer) is not GrowingLayer for layer in layers):
            return False
        self._torn = True
        self.ids = self.ids[:length]  # first: layers may be ahead of the ids, never behind
        for layer in layers:  # not `layer.crop`: after an interrupt, keys and values may differ
            if layer.is_initialized:
                layer.keys = layer.keys[..., :length, :]  # [1, heads, T, D]
                layer.values = layer.values[..., :length, :]
        self._torn = False
        return True


def context_length(model: "PreTrainedModel") -> int:
    """Return the model's number of positions; `sys.maxsize` if its settings don't limit it."""
    config = model.config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None) or sys.maxsize


def end_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Return the ids that end a reply: the model's, one or several, and the tokenizer's."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = ids if isinstance(ids, list | tuple) else [ids]
    return frozenset(end for end in (*ids, tokenizer.eos_token_id) if end is not None)
