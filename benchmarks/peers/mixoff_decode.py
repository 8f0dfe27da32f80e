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
    """A model and its expert cache."""

    model: Any
    cache: ExpertCache
    past: DynamicCache
    before: CacheStats | None = None

    @torch.inference_mode()
    def read(self, ids: list[int]) -> int:
        input_ids = torch.tensor([ids])
        output = self.model(input_ids=input_ids, past_key_values=self.past, logits_to_keep=1)
        return int(output.logits[0, -1].argmax())

    def reset(self) -> None:
        self.past = growing_cache(self.model.config)

    def facts(self) -> dict[str, Any]:
        after = self.cache.stats()
        stats = after - (self.before or after)
        self.before = after
        return {"hit_rate": stats.hit_rate if stats.hits + stats.misses else None}


def load(settings: dict[str, Any]) -> MixoffSession:
    logging.disable_progress_bar()
    torch.set_num_threads(settings["threads"])
    dtype = getattr(torch, settings["dtype"]) if settings.get("dtype") else None
    offload = OffloadConfig(**settings["offload"])
    model, cache = build_model(settings["path"], offload, dtype=dtype)
    return MixoffSession(model, cache, growing_cache(model.config))


if __name__ == "__main__":
    decode(load)
