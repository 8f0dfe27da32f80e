"""airllm as a worker, on a CPU."""

from typing import Any

import torch
from airllm.airllm_base import AirLLMBaseModel
from transformers import DynamicCache
from worker import decode, read_settings, send


class WithoutTokenizer(AirLLMBaseModel):
    """airllm's generic model, for a folder that has no tokenizer."""

    def get_tokenizer(self, hf_token: str | None = None) -> None:
        """Return None: the settings have tokens instead of text."""


class AirllmSession:
    """A model whose layers are read from disk one after the other."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.set_num_threads(settings.get("threads", 1))
        self.model = WithoutTokenizer(
            settings["path"],
            device="cpu",
            dtype=torch.bfloat16,
            layer_shards_saving_path=settings["shards"],
        )
        self.reset()

    @torch.inference_mode()
    def read(self, ids: list[int]) -> int:
        input_ids = torch.tensor([ids])
        output = self.model(input_ids=input_ids, past_key_values=self.past, use_cache=True)
        return int(output.logits[0, -1].argmax())

    def reset(self) -> None:
        self.past = DynamicCache(config=self.model.config)

    def facts(self) -> dict[str, Any]:
        return {}


if __name__ == "__main__":
    if read_settings().get("only_split"):
        AirllmSession(read_settings())
        send(split=True)
    else:
        decode(AirllmSession)
