"""The report's ways to serve experts, from its whole algorithm to none, and how fast each decodes.

Knows settings, a model and a clock. Table 2 of "Fast Inference of Mixture-of-Experts Language
Models with Offloading" (arXiv 2312.17238) takes the parts of the algorithm away one by one.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mixoff.cache.cache import ExpertCache, cache_of
from mixoff.cache.stats import CacheStats
from mixoff.chat.kv_cache import growing_cache
from mixoff.config import OffloadConfig
from mixoff.errors import ConfigError
from mixoff.models.build import build_model
from mixoff.models.layers.experts import OffloadedExperts

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = (
    "algorithm",
    "round",
    "tokens_per_second",
    "hit_rate",
    "nbytes_per_token",
    "wait_ms_per_token",
)


@dataclass(frozen=True)
class Ablation:
    """A way to serve experts.

    Parameters
    ----------
    name
        What the report's Table 2 calls it.
    offload
        The settings that make it.
    whole_layers
        Whether all experts of a layer are fetched whenever it is computed, as `fetch_whole_layers`
        does.
    """

    name: str
    offload: OffloadConfig
    fetch_whole_layers: bool = False


def ablations(num_experts: int, *, slots: int = 4, prefetch: int = 2) -> tuple[Ablation, ...]:
    """Return the four rows of the report's Table 2, from the whole algorithm to none of it.

    The whole algorithm is a least-recently-used cache and guesses of the next layer's experts. The
    second row makes no guesses. The third has no slots, either: what a token needs is fetched and
    let go. The last one fetches all experts of each layer, needed or not.

    Parameters
    ----------
    num_experts
        Experts of a layer.
    slots
        Experts of a layer that the cache keeps in the first two rows.
    prefetch
        Experts that are guessed for the next layer in the first row.

    Raises
    ------
    ConfigError
        If a layer hasn't so many experts.
    """
    if not 1 <= slots <= num_experts:
        raise ConfigError(
            f"slots={slots}: a layer has {num_experts} experts, so give 1 to {num_experts}."
        )
    cached = num_experts - slots
    return (
        Ablation("full", OffloadConfig(offload_per_layer=cached, prefetch=prefetch)),
        Ablation("without speculative pre-loading", OffloadConfig(offload_per_layer=cached)),
        Ablation("without LRU cache and pre-loading", OffloadConfig(offload_per_layer=num_experts)),
        Ablation(
            "naive offloading",
            OffloadConfig(offload_per_layer=num_experts),
            fetch_whole_layers=True,
        ),
    )


@contextmanager
def fetch_whole_layers(model: nn.Module) -> Iterator[None]:
    """Fetch, inside the ``with`` block, all experts of a layer before it is computed.

    They go when the next layer's come. That is what offloading does that knows layers and no
    experts, as accelerate's; nothing is fetched while something else is computed.

    Raises
    ------
    MixoffError
        If the model has no expert cache.
    """
    cache = cache_of(model)
    slots = cache.slots_per_layer

    def fetch(module: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(module, OffloadedExperts)
        cache.resize(0)
        cache.resize(cache.num_experts)
        for _ in cache.acquire(module.layer, range(cache.num_experts), tokens=len(given[0])):
            pass

    layers = [module for module in model.modules() if isinstance(module, OffloadedExperts)]
    hooks = [layer.register_forward_pre_hook(fetch) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        cache.resize(slots)


def ablation_speed(
    name_or_path: str | Path,
    ways: Sequence[Ablation],
    ids: Sequence[int] | Tensor,
    *,
    prompt: int = 16,
    rounds: int = 3,
    device: str | torch.device = "cpu",
) -> "pd.DataFrame":
    """Return how fast a model decodes a given text in each way, a row a way and round.

    Ways take turns, so that what else the machine does strikes all alike: take medians. Each time
    the model is built anew, reads the prompt, and is given the other tokens one by one, so that
    all ways compute the same. Columns: algorithm; round, from 0; tokens_per_second; hit_rate, of
    the experts that a token needs how many were in a slot when their layer was reached;
    nbytes_per_token, fetched for demands and for wrong guesses; wait_ms_per_token, how long compute
    stood still for experts.

    Parameters
    ----------
    name_or_path, device
        As `mixoff.build_model` takes them.
    ways
        Such as `ablations` returns; each name once.
    ids
        The text's tokens [T].
    prompt
        How many of them are read at once, and not timed.

    Raises
    ------
    ConfigError
        If no token is left to decode, or there is no way or round.
    """
    import pandas as pd

    tokens = torch.as_tensor(ids)
    if not (ways and rounds >= 1 and 1 <= prompt < len(tokens)):
        raise ConfigError(
            f"{len(ways)} ways, rounds={rounds}, prompt={prompt} of {len(tokens)} tokens: give one "
            "way and round or more, and a prompt that leaves tokens to decode."
        )
    rows = [
        (way.name, turn, *_run(name_or_path, way, tokens, prompt, device))
        for turn in range(rounds)
        for way in ways
    ]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _run(
    name_or_path: str | Path, way: Ablation, tokens: Tensor, prompt: int, device: Any
) -> tuple[float, float, float, float]:
    model, cache = build_model(name_or_path, way.offload, device=device)
    try:
        if not way.fetch_whole_layers:
            seconds, found = _decode(model, cache, tokens, prompt)
        else:
            with fetch_whole_layers(model):
                seconds, found = _decode(model, cache, tokens, prompt)
    finally:
        cache.close()
    count = len(tokens) - prompt
    # Fetching a whole layer is a demand, too, and leaves the model's own nothing to miss.
    hit_rate = 0.0 if way.fetch_whole_layers else found.hit_rate
    nbytes = (found.bytes_moved + found.bytes_wasted) / count
    return count / seconds, hit_rate, nbytes, found.wait_ns / count / 1e6


@torch.inference_mode()
def _decode(
    model: PreTrainedModel, cache: ExpertCache, tokens: Tensor, prompt: int
) -> tuple[float, CacheStats]:
    """Return how long it takes to decode what comes after the prompt, and what the cache did."""
    past = growing_cache(model.config)
    ids = tokens[None].to(model.device)  # [1, T]
    model(input_ids=ids[:, :prompt], past_key_values=past)
    before, began = cache.stats(), time.perf_counter()
    for place in range(prompt, len(tokens)):
        logits = model(input_ids=ids[:, place : place + 1], past_key_values=past).logits
    logits.argmax().item()  # a device works on after it was told: only now all is done
    return time.perf_counter() - began, cache.stats() - before
