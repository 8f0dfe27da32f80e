"""Train the demo model: a plain transformers Mixtral, in float32, on the CPU.

The schedule goes by time, since these machines are shared: the learning rate warms up, stays, and
may fall to zero at the end; windows are short first and may be all positions long at the end.
Weights are written every few minutes, so that a run that is cut off leaves a model.
"""

import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, MixtralConfig, MixtralForCausalLM

from tokenizer import POSITIONS, VOCABULARY

LAYERS, EXPERTS, TOP_K = 8, 8, 2
TOKENS_PER_STEP = 4096
WARM_UP_STEPS = 60
LEARNING_RATE = 2e-3
LOAD_BALANCING = 0.02
INST, END_INST = 3, 4  # ids of [INST] and [/INST]
SAVE_SECONDS = 300
LOG_COLUMNS = [
    "phase", "step", "tokens", "seconds", "loss", "validation_loss", "max_load", "min_load",
]  # fmt: skip

Ids = NDArray[np.uint16]


@dataclass(frozen=True)
class Phase:
    """A part of the training: how long, on which windows, towards what."""

    minutes: float
    window: int
    user_weight: float  # of a user's tokens in the loss: they vary much more than replies
    cool_down: float = 0.0  # share of the time, at the end, in which the learning rate falls to 0
    long_windows: float = 0.0  # share of the time, at the end, with windows of all positions
    seed: int = 0


def new_model(seed: int = 0) -> MixtralForCausalLM:
    """Return the untrained demo model: 15.2 M parameters, 5.3 M of them active for a token."""
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        max_position_embeddings=POSITIONS,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        router_aux_loss_coef=LOAD_BALANCING,
    )
    torch.manual_seed(seed)
    model = MixtralForCausalLM(config)
    model.set_experts_implementation("grouped_mm")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.div_(math.sqrt(2 * LAYERS))
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=2, do_sample=False, max_new_tokens=200
    )
    return model


def train(model: MixtralForCausalLM, ids: Ids, validation: Ids, folder: Path, phase: Phase) -> None:
    """Train a model on a stream of tokens; write it and ``training_log.csv`` to `folder`."""
    optimizer = _optimizer(model)
    rng = np.random.default_rng(phase.seed)
    folder.mkdir(parents=True, exist_ok=True)
    start = saved = time.monotonic()
    step = 0
    with (folder / "training_log.csv").open("a", newline="") as file:
        log = csv.writer(file)
        if not file.tell():
            log.writerow(LOG_COLUMNS)
        while (done := (time.monotonic() - start) / (60 * phase.minutes)) < 1:
            window = POSITIONS if done > 1 - phase.long_windows else phase.window
            _set_learning_rate(optimizer, LEARNING_RATE * _schedule(step, done, phase.cool_down))
            loss, load = _step(model, optimizer, _windows(ids, window, rng), phase.user_weight)
            step += 1
            if step % 20 == 0:
                now = time.monotonic()
                held_out = f"{validation_loss(model, validation):.4f}" if step % 200 == 0 else ""
                row = [phase.seed, step, step * TOKENS_PER_STEP, round(now - start), f"{loss:.4f}"]
                log.writerow([*row, held_out, f"{load.max():.3f}", f"{load.min():.3f}"])
                file.flush()
                if now - saved > SAVE_SECONDS:
                    model.save_pretrained(folder)
                    saved = now
    model.save_pretrained(folder)


@torch.no_grad()
def validation_loss(model: MixtralForCausalLM, ids: Ids, windows: int = 24) -> float:
    """Return the mean loss, in nats a token, over the first windows of a stream of tokens."""
    count = min(windows, (len(ids) - 1) // POSITIONS)
    losses = []
    for start in range(0, count * POSITIONS, POSITIONS):
        x = torch.from_numpy(ids[start : start + POSITIONS + 1].astype(np.int64))
        losses.append(F.cross_entropy(model(input_ids=x[None, :-1]).logits[0], x[1:]).item())
    return sum(losses) / len(losses)


def _optimizer(model: MixtralForCausalLM) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)


def _schedule(step: int, done: float, cool_down: float) -> float:
    return min(1, (step + 1) / WARM_UP_STEPS, (1 - done) / cool_down if cool_down else 1)


def _set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _windows(ids: Ids, window: int, rng: np.random.Generator) -> Tensor:
    starts = rng.integers(0, len(ids) - window - 1, TOKENS_PER_STEP // window)
    return torch.from_numpy(np.stack([ids[s : s + window + 1] for s in starts]).astype(np.int64))


def _step(
    model: MixtralForCausalLM, optimizer: torch.optim.Optimizer, x: Tensor, user_weight: float
) -> tuple[float, Tensor]:
    output = model(input_ids=x[:, :-1], use_cache=False, output_router_logits=True)
    losses = F.cross_entropy(output.logits.flatten(0, 1), x[:, 1:].flatten(), reduction="none")
    weights = _weights(x[:, 1:], user_weight).flatten()
    loss = (losses * weights).sum() / weights.sum()
    balance, load = _load_balancing(output.router_logits)
    (loss + LOAD_BALANCING * balance).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), load


def _weights(targets: Tensor, user_weight: float) -> Tensor:
    """Return each target token's weight in the loss, [B, T]."""
    opened = (targets == INST).long().cumsum(1) - (targets == END_INST).long().cumsum(1)
    starts_inside = opened.amin(1, keepdim=True) < 0  # the window was cut inside a user's turn
    return torch.where(opened + starts_inside.long() > 0, user_weight, 1.0)


def _load_balancing(router_logits: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the balancing loss, per layer and then averaged, and each layer's load over even load.

    transformers' own helper pools all layers, which lets one layer's excess hide another's want.
    """
    losses, loads = [], []
    for logits in router_logits:  # [T, E]
        chosen = F.one_hot(logits.topk(TOP_K).indices, EXPERTS).sum(1).float().mean(0)  # [E]
        losses.append(EXPERTS * (chosen * logits.softmax(-1).mean(0)).sum())
        loads.append(chosen * EXPERTS / TOP_K)
    return torch.stack(losses).mean(), torch.stack(loads).detach()
