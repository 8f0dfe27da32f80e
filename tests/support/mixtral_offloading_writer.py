"""Writes the layout that mixtral-offloading released: from its description, with hqq and no mixoff.

For a matrix W [N, K]: W reshaped to [group_size, G] is quantized along axis 0 and packed by hqq.
Its scales [1, G], reshaped to [scale_group_size, -1], are 8-bit codes with a float16 scale and zero
for each column; its zeros are 8-bit codes with one float16 scale and zero for all.
W = (W_q - zero) * scale.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from hqq.core.quantize import Quantizer
from safetensors.torch import save_file
from torch import Tensor
from transformers import MixtralForCausalLM

INDEX = "model.safetensors.index.json"
NON_EXPERT = "model-trunk.safetensors"


@dataclass(frozen=True)
class Bits:
    """How matrices are quantized: bits of a code, weights in a group, scales in a group."""

    nbits: int
    group_size: int
    scale_group_size: int

    def quantize(self, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the tensors that are written, and the matrix that they stand for."""
        packed, meta = Quantizer.quantize(
            weight,
            nbits=self.nbits,
            group_size=self.group_size,
            axis=0,
            round_zero=self.nbits == 4,  # as hqq's own settings have it
            device="cpu",
        )
        scale, of_scale = _bytes(meta["scale"].view(self.scale_group_size, -1), "scale")
        zero, of_zero = _bytes(meta["zero"].view(-1, 1), "zero")
        codes = Quantizer.unpack[meta["packing"]](packed)[: self.group_size].float()
        dequantized = (codes - zero.view(1, -1)) * scale.view(1, -1)
        of_zero["meta.zero_q"] = of_zero["meta.zero_q"].view(1, -1)
        for name in ("meta.meta_zero.scale", "meta.meta_zero.zero"):
            of_zero[name] = of_zero[name].view(())
        return {"W_q": packed, **of_scale, **of_zero}, dequantized.view(weight.shape)


def _bytes(values: Tensor, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return values as bytes give them back, with one scale and zero a column, and the tensors."""
    low, high = values.min(0, keepdim=True).values, values.max(0, keepdim=True).values
    scale = ((high - low) / 255).clamp_min(1e-4).half()
    zero = (-low / scale.float()).half()
    codes = (values / scale.float() + zero.float()).round().clamp(0, 255)
    tensors = {
        f"meta.{name}_q": codes.to(torch.uint8),
        f"meta.meta_{name}.scale": scale,
        f"meta.meta_{name}.zero": zero,
    }
    return (codes - zero.float()) * scale.float(), tensors


@torch.no_grad()
def write_released(
    model: MixtralForCausalLM, folder: Path, *, attention: Bits, experts: Bits
) -> None:
    """Write a model into a new folder, and give the model the weights that were written."""
    folder.mkdir()
    index = {}
    for number, layer in enumerate(model.model.layers):
        for expert in range(model.config.num_local_experts):
            prefix = f"model.layers.{number}.block_sparse_moe.experts.{expert}."
            file = f"model-layer{number}-expert{expert}.safetensors"
            tensors = _quantize_expert(layer.mlp.experts, expert, experts)
            save_file(tensors, folder / file, {"format": "pt"})
            index |= {prefix + name: file for name in tensors}
    non_expert = _quantize_non_expert(model, attention)
    save_file(non_expert, folder / NON_EXPERT, {"format": "pt"})
    index |= dict.fromkeys(non_expert, NON_EXPERT)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    settings = model.config.to_dict() | {"dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(settings))


def _quantize_expert(experts: torch.nn.Module, expert: int, bits: Bits) -> dict[str, Tensor]:
    gate, up = experts.gate_up_proj[expert].chunk(2)
    tensors = {}
    for name, weight in (("w1", gate), ("w2", experts.down_proj[expert]), ("w3", up)):
        parts, dequantized = bits.quantize(weight)
        weight.copy_(dequantized)
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    return tensors


def _quantize_non_expert(model: MixtralForCausalLM, bits: Bits) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        released = name.replace(".mlp.", ".block_sparse_moe.")
        if ".self_attn." in name:
            parts, dequantized = bits.quantize(parameter)
            parameter.copy_(dequantized)
            prefix = released.removesuffix("weight")
            tensors |= {prefix + part: tensor for part, tensor in parts.items()}
        elif ".experts." not in name:
            parameter.copy_(parameter.half())
            tensors[released] = parameter.half()
    return tensors
