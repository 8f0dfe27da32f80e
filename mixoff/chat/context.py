"""The steps of a reply: messages to ids, ids to logits, tokens to text.

Knows tokenizers and models; nothing of how a conversation goes on, ends or is cut short.
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
    """What a model has read so far: the ids, and the KV cache that belongs to exactly these ids.

    An exception inside the model, at any point, leaves it usable: layers of the KV cache that are
    ahead of the ids are cropped by the next `rewind`, or the cache is given up.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            self._options["logits_to_keep"] = 1
        self._forget()

    def rewind(self, ids: Sequence[int]) -> int:
        """Keep the beginning shared with `ids`, except their last, and return its length."""
        pairs = zip(self.ids, ids[:-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if shared == 0 or not self._crop(shared):
            self._forget()
        return len(self.ids)

    def read(self, ids: Sequence[int]) -> Tensor:
        """Read more ids and return the logits [V] of what may follow the last of them."""
        new = torch.tensor([ids], device=self._model.device)  # [1, T]
        self._torn = True
        with torch.inference_mode():
            out = self._model(input_ids=new, past_key_values=self._cache, **self._options)
        self.ids.extend(ids)
        self._torn = False
        logits: Tensor = out.logits[0, -1]  # [V]
        return logits

    def _forget(self) -> None:
        self.ids: list[int] = []
        self._cache: DynamicCache = growing_cache(self._model.config)
        self._torn = False

    def _crop(self, length: int) -> bool:
        """Shorten to `length`; False where that can't be done, as with a sliding window."""
        if length == len(self.ids) and not self._torn:
            return True
        layers: list[Any] = self._cache.layers
        if any(type(layer) is not GrowingLayer for layer in layers):
            return False
        self._torn = True
        self.ids = self.ids[:length]  # before the layers: they may be ahead of the ids, not behind
        for layer in layers:  # by hand: `crop` goes by the keys, and an interrupt may part them
            if layer.is_initialized:
                layer.keys = layer.keys[..., :length, :]  # [1, heads, T, D]
                layer.values = layer.values[..., :length, :]
        self._torn = False
        return True


def context_length(model: "PreTrainedModel") -> int:
    """Return how many positions the model knows; as good as endless if it doesn't say."""
    config = model.config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None) or sys.maxsize


def end_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Return all ids that end a reply: the model's, one or several, and the tokenizer's."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = ends if isinstance(ends, list | tuple) else [ends]
    return frozenset(end for end in (*several, tokenizer.eos_token_id) if end is not None)
