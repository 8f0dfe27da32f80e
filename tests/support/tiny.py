"""Mixtrals of a few kilobytes with random weights, and the schemes that tests convert them with."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from mixoff.quantization import HQQ, Scheme, Unquantized

VOCAB = 256
MIXED = Scheme(attention=HQQ(nbits=4, group_size=16), experts=HQQ(2, group_size=16, scale_nbits=8))
EXACT = Scheme(attention=Unquantized("float32"), experts=Unquantized("float32"))
_SETTINGS = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": None,
}


def bytes_as_ids(text: str, **_: Any) -> dict[str, list[int]]:
    """Stand in for a tokenizer: each byte is a token."""
    return {"input_ids": [*text.encode()]}


def random_mixtral(
    experts: int = 8,
    top_k: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    favourite: int | None = None,
    **config: Any,
) -> MixtralForCausalLM:
    """Return a Mixtral with random weights; every token chooses the `favourite` expert, if any."""
    settings = {**_SETTINGS, "num_local_experts": experts, "num_experts_per_tok": top_k, **config}
    torch.manual_seed(seed)
    model = MixtralForCausalLM(MixtralConfig(**settings)).eval()
    if favourite is not None:
        _prefer(model, favourite)
    return model.to(dtype)


@torch.no_grad()
def _prefer(model: MixtralForCausalLM, expert: int) -> None:
    model.model.embed_tokens.weight[:, 0] = 20  # in every token's hidden state,
    for layer in model.model.layers:
        layer.mlp.gate.weight[expert, 0] = 20  # for which the gate gives this expert the most


def stack_experts(source: Path) -> None:
    """Store each layer's experts as two tensors, under the names that the model has for them."""
    tensors = load_file(source / "model.safetensors")
    for layer in range(2):
        old, new = f"model.layers.{layer}.block_sparse_moe.", f"model.layers.{layer}.mlp."
        gate, down, up = (
            torch.stack([tensors.pop(f"{old}experts.{e}.w{n}.weight") for e in range(2)])
            for n in (1, 2, 3)
        )
        tensors[new + "experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
        tensors[new + "experts.down_proj"] = down
        tensors[new + "gate.weight"] = tensors.pop(old + "gate.weight")
    save_file(tensors, source / "model.safetensors")
