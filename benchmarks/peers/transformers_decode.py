"""transformers as a worker: in memory, mapped, or with experts on disk through accelerate."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.utils import logging
from worker import decode


@dataclass
class TransformersSession:
    """A model of transformers, loaded by any of the functions below."""

    model: Any
    past: DynamicCache
    scratch: str | None = None

    @torch.inference_mode()
    def read(self, ids: list[int]) -> int:
        input_ids = torch.tensor([ids])
        output = self.model(input_ids=input_ids, past_key_values=self.past, logits_to_keep=1)
        return int(output.logits[0, -1].argmax())

    def reset(self) -> None:
        self.past = DynamicCache(config=self.model.config)

    def facts(self) -> dict[str, Any]:
        return {}

    def __del__(self) -> None:
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)


def in_memory(folder: Path) -> TransformersSession:
    """Load with `from_pretrained`, and copy mapped tensors into memory."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for parameter in model.parameters():
        if not parameter.untyped_storage().resizable():
            parameter.data = parameter.data.clone()
    return TransformersSession(model, DynamicCache(config=model.config))


def mapped(folder: Path) -> TransformersSession:
    """Assign the tensors of mapped files to a model, so that pages are read when they are used."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    rotary = type(model.model.rotary_emb)(config)  # its buffers are in no file
    model.model.rotary_emb = rotary
    state = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            state |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    model.load_state_dict(state, assign=True)
    return TransformersSession(model.eval(), DynamicCache(config=config))


def experts_on_disk(folder: Path, scratch: str) -> TransformersSession:
    """Load with accelerate's device map, all experts on disk."""
    offloaded = tempfile.mkdtemp(dir=scratch)
    config = AutoConfig.from_pretrained(folder)
    devices: dict[str, str] = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    devices["model.rotary_emb"] = "cpu"
    for layer in range(config.num_hidden_layers):
        for part in ("self_attn", "input_layernorm", "post_attention_layernorm", "mlp.gate"):
            devices[f"model.layers.{layer}.{part}"] = "cpu"
        devices[f"model.layers.{layer}.mlp.experts"] = "disk"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map=devices, offload_folder=offloaded
    )
    return TransformersSession(model, DynamicCache(config=config), offloaded)


def load(settings: dict[str, Any]) -> TransformersSession:
    logging.disable_progress_bar()
    torch.set_num_threads(settings["threads"])
    folder = Path(settings["path"])
    if settings["how"] == "accelerate":
        return experts_on_disk(folder, settings["scratch"])
    return mapped(folder) if settings["how"] == "mapped" else in_memory(folder)


if __name__ == "__main__":
    decode(load)
