"""Models built by mixoff, and transformers' own with the same weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, MixtralForCausalLM, PreTrainedModel

from mixoff.checkpoints.formats import open_checkpoint
from mixoff.checkpoints.mixoff_format import layer_file
from mixoff.tiers.record import RecordLayout
from support.tiny import VOCAB

prompt = torch.randint(VOCAB, (2, 8), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_both_ways(
    model: PreTrainedModel, after_each: Callable[[], None] = lambda: None
) -> Tensor:
    """Return logits [2, B, T, V] of the prompt, at once and then token by token."""
    ids = prompt.to(model.device)
    at_once = model(ids).logits
    past, steps = None, []
    for position in range(ids.shape[1]):
        out = model(ids[:, position : position + 1], past_key_values=past, use_cache=True)
        past = out.past_key_values
        steps.append(out.logits)
        after_each()
    return torch.stack([at_once, torch.cat(steps, dim=1)])


def with_dequantized_weights(stock: MixtralForCausalLM, folder: Path) -> MixtralForCausalLM:
    """Return a stock model whose attention and experts have the weights that a checkpoint holds."""
    model, checkpoint = copy.deepcopy(stock), open_checkpoint(folder)
    for layer, block in enumerate(model.model.layers):
        shard = checkpoint.shards[layer_file(layer)]
        for name, linear in block.self_attn.named_children():
            layout = RecordLayout(checkpoint.scheme.attention, (("w", tuple(linear.weight.shape)),))
            record = shard.read(f"model.layers.{layer}.self_attn.{name}.weight")
            linear.weight.data = layout.tensors(record)["w"].dequantize()
        for expert in range(checkpoint.num_experts):
            record = shard.read(checkpoint.architecture.experts_tensor(layer), expert)
            for name, tensor in checkpoint.expert_layouts()[layer][0].tensors(record).items():
                getattr(block.mlp.experts, name).data[expert] = tensor.dequantize()
    return model


tokens = torch.randint(VOCAB, (1, 10), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def run(model: Any, ids: Tensor = tokens, prompt: int = 4) -> Tensor:
    """Give a model a prompt at once and the rest token by token; return all logits, [1, T, V]."""
    past = DynamicCache(config=model.config)
    pieces = [ids[:, :prompt], *ids[:, prompt:].split(1, dim=1)]
    return torch.cat([model(piece, past_key_values=past).logits for piece in pieces], dim=1)
