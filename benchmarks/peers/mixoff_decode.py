"""mixoff as a worker."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.utils import logging
from worker import decode

from mixoff import ExpertCache, OffloadConfig, build_model
from mixoff.cache import CacheStats
from mixoff.chat.kv_cache import growing_cache


@dataclass
class MixoffSession:
    """A model behind its cache of experts."""

    model: Any
    cache: ExpertCache
    past: DynamicCache
    before: CacheStats | None = None

    @torch.inference_mode()
    def read(self, ids: list[int]) -> int:
        given = torch.tensor([ids])
        found = self.model(input_ids=given, past_key_values=self.past, logits_to_keep=1)
        return int(found.logits[0, -1].argmax())

    def reset(self) -> None:
        self.past = growing_cache(self.model.config)

    def told(self) -> dict[str, Any]:
        after = self.cache.stats()
        done = after - (self.before or after)
        self.before = after
        return {"hit_rate": done.hit_rate if done.hits + done.misses else None}


def load(given: dict[str, Any]) -> MixoffSession:
    logging.disable_progress_bar()
    torch.set_num_threads(given["threads"])
    dtype = getattr(torch, given["dtype"]) if given.get("dtype") else None
    offload = OffloadConfig(**given["offload"])
    model, cache = build_model(given["path"], offload, dtype=dtype)
    return MixoffSession(model, cache, growing_cache(model.config))


if __name__ == "__main__":
    decode(load)
