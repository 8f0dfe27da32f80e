"""Measure the demo model: answers, replies to a newcomer, routing, loss by bits. Prints as it goes.

Answers and replies are those of the quantized model that users get, with its matrices dequantized
into a plain transformers model, which is faster here and gives the same tokens (a test of mixoff's
proves that).
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from corpus import PROBES, render
from mixoff import OffloadConfig, Scheme, build_model, quantize_checkpoint
from mixoff.measure import held_out_loss
from mixoff.policies.recency import LRU
from mixoff.policies.residency import Residency
from mixoff.quantization import HQQ
from wording import Turn, noise

PROBE_SEED = 999
PROBES_PER_KIND = 40
CHECKED = (
    "capital", "colour", "opposite", "sum", "word_problem", "animal", "definition", "job",
    "calendar", "story_question", "name_recall", "list_count",
)  # fmt: skip
SCHEMES = {
    "4-bit attention, 4-bit experts": Scheme(HQQ(4, 64), HQQ(4, 64)),
    "4-bit attention, 3-bit experts": Scheme(HQQ(4, 64), HQQ(3, 64)),
    "4-bit attention, 2-bit experts": Scheme(HQQ(4, 64), HQQ(2, 16, scale_nbits=8)),
}


@dataclass
class Demo:
    """A model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    def reply(self, turns: list[Turn], question: str, max_new_tokens: int = 120) -> str:
        """Return the greedy reply to a question after some turns."""
        text = f"{render(turns)}[INST] {question} [/INST]"
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False
        )
        return self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def dequantized(quantized: Path, original: Path) -> Demo:
    """Return the quantized model as a plain transformers model of dequantized matrices."""
    ours, cache = build_model(quantized, OffloadConfig(offload_per_layer=0))
    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    model.set_experts_implementation("eager")
    with torch.no_grad():
        for layer, (mine, plain) in enumerate(
            zip(ours.model.layers, model.model.layers, strict=True)
        ):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                packed = getattr(mine.self_attn, name)
                weight = packed.layout.tensors(packed.weight)["weight"].dequantize()
                getattr(plain.self_attn, name).weight.copy_(weight)
            for expert, tensors in cache.acquire(layer, range(cache.num_experts)):
                for name, tensor in tensors.items():
                    getattr(plain.mlp.experts, name)[expert].copy_(tensor.dequantize())
    cache.close()
    return Demo(model.eval(), AutoTokenizer.from_pretrained(original))


def answers(demo: Demo) -> dict[str, dict[str, object]]:
    """Return, by kind, how many fresh questions got exactly the right reply, and what failed."""
    results: dict[str, dict[str, object]] = {}
    for kind in CHECKED:
        rng = Random(f"{PROBE_SEED} {kind}")
        right, wrong = 0, []
        for _ in range(PROBES_PER_KIND):
            turns = PROBES[kind](rng)
            turns = [Turn(noise(rng, turn.user), turn.reply) for turn in turns]
            reply = demo.reply(turns[:-1], turns[-1].user)
            if reply == turns[-1].reply.strip():
                right += 1
            else:
                wrong.append([turns[-1].user, reply, turns[-1].reply])
        results[kind] = {"asked": PROBES_PER_KIND, "right": right, "wrong": wrong}
        print(f"{kind}: {right} of {PROBES_PER_KIND}", flush=True)
    return results


def newcomer(demo: Demo, prompts: Path) -> list[list[str]]:
    """Return each newcomer's prompt with the reply."""
    pairs = [[prompt, demo.reply([], prompt)] for prompt in prompts.read_text().splitlines()]
    for prompt, reply in pairs:
        print(f"> {prompt}\n{reply}\n", flush=True)
    return pairs


def routing(demo: Demo, text: str, documents: int = 250) -> dict[str, object]:
    """Return LRU hit rates at 2 and 4 slots, recall of 2 guesses by layer, and load of experts."""
    routers = [layer.mlp.gate for layer in demo.model.model.layers]
    inputs: list[Tensor] = []
    hooks = [gate.register_forward_pre_hook(lambda _, x: inputs.append(x[0])) for gate in routers]
    layers, experts = len(routers), demo.model.config.num_local_experts
    hits = {slots: [[0, 0] for _ in routers] for slots in (2, 4)}
    load = torch.zeros(layers, experts)
    recall = [[0, 0] for _ in range(layers - 1)]
    for document in re.findall(r"<s>(?:(?!<s>).)*", text, re.DOTALL)[:documents]:
        inputs.clear()
        ids = demo.tokenizer(document, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            demo.model(input_ids=ids, use_cache=False)
            states = [x.reshape(-1, x.shape[-1]) for x in inputs]  # [T, D] a layer
            chosen = [gate(x)[2] for gate, x in zip(routers, states, strict=True)]  # [T, k] a layer
            guesses = [
                (states[i] @ routers[i + 1].weight.T).topk(2).indices for i in range(layers - 1)
            ]
        inputs.clear()
        for layer, index in enumerate(chosen):
            load[layer] += torch.bincount(index.flatten(), minlength=experts)
            for slots, counts in hits.items():
                _count_lru(index.tolist(), slots, experts, counts[layer])
        for layer, guess in enumerate(guesses):
            guessed = (guess[:, :, None] == chosen[layer + 1][:, None, :]).any(1)  # [T, k]
            recall[layer][0] += int(guessed.sum())
            recall[layer][1] += guessed.numel()
    for hook in hooks:
        hook.remove()
    share = load / load.sum(1, keepdim=True) * experts
    return {
        "lru_2_slots": [hit / total for hit, total in hits[2]],
        "lru_4_slots": [hit / total for hit, total in hits[4]],
        "next_layer_recall_2": [hit / total for hit, total in recall],
        "least_load": share.min().item(),
        "largest_load": share.max().item(),
        "tokens": int(load[0].sum()) // 2,
    }


def losses(original: Path, text: str) -> dict[str, dict[str, float]]:
    """Return the held-out loss of the original and of each scheme, and bytes of the experts."""
    tokenizer = AutoTokenizer.from_pretrained(original)
    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    results = {"not quantized": asdict(held_out_loss(model, tokenizer, text))}
    results["not quantized"]["nbytes"] = (original / "model.safetensors").stat().st_size
    for name, scheme in SCHEMES.items():
        with TemporaryDirectory() as folder:
            path = quantize_checkpoint(original, Path(folder) / "model", scheme, progress=False)
            model, cache = build_model(path, OffloadConfig(offload_per_layer=0))
            results[name] = asdict(held_out_loss(model, tokenizer, text))
            results[name]["nbytes"] = sum(
                file.stat().st_size for file in path.glob("*.safetensors")
            )
            cache.close()
        print(name, results[name], flush=True)
    return results


def measure(quantized: Path, original: Path, data: Path) -> None:
    """Measure all of it and write ``measurements.json``."""
    text = (data / "heldout.txt").read_text()
    demo = dequantized(quantized, original)
    measured = {
        "newcomer": newcomer(demo, data / "newcomer_prompts.txt"),
        "answers": answers(demo),
        "routing": routing(demo, text),
        "losses": losses(original, text),
    }
    (data / "measurements.json").write_text(json.dumps(measured, indent=1) + "\n")


def _count_lru(demands: list[list[int]], slots: int, experts: int, counts: list[int]) -> None:
    """Add the hits and the demanded experts of one sequence, from an empty cache, to `counts`."""
    residency = Residency(experts, slots, LRU())
    for demand in demands:
        hits, misses = residency.demand(demand)
        for expert in misses:
            slot, _ = residency.vacate(demand)
            residency.occupy(slot, expert)
        counts[0] += len(hits)
        counts[1] += len(hits) + len(misses)
