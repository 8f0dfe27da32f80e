"""airllm as a worker, on a CPU."""

from typing import Any

import torch
from airllm.airllm_base import AirLLMBaseModel
from transformers import DynamicCache
from worker import decode, settings, tell


class WithoutTokenizer(AirLLMBaseModel):
    """airllm's generic model, for a folder that has no tokenizer."""

    def get_tokenizer(self, hf_token: str | None = None) -> None:
        """Return none: tokens are given."""


class AirllmSession:
    """A model whose layers come from disk, one after the other."""

    def __init__(self, given: dict[str, Any]) -> None:
        torch.set_num_threads(given.get("threads", 1))
        self.model = WithoutTokenizer(
            given["path"],
            device="cpu",
            dtype=torch.bfloat16,
            layer_shards_saving_path=given["shards"],
        )
        self.reset()

    @torch.inference_mode()
    def read(self, ids: list[int]) -> int:
        given = torch.tensor([ids])
        found = self.model(input_ids=given, past_key_values=self.past, use_cache=True)
        return int(found.logits[0, -1].argmax())

    def reset(self) -> None:
        self.past = DynamicCache(config=self.model.config)

    def told(self) -> dict[str, Any]:
        return {}


if __name__ == "__main__":
    if settings().get("only_split"):
        AirllmSession(settings())
        tell(split=True)
    else:
        decode(AirllmSession)
