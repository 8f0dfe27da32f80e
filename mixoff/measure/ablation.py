"""Decoding speed with the parts of the offloading algorithm removed one by one.

The algorithm and its ablations are those of Table 2 in "Fast Inference of Mixture-of-Experts
Language Models with Offloading" (arXiv 2312.17238). Knows settings, models and a clock.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
    """The offloading algorithm without some of its parts.

    Parameters
    ----------
    name
        Its name in the report's Table 2.
    offload
        The settings that it runs with.
    fetch_whole_layers
        Whether all experts of a layer are fetched whenever the layer is computed, as the function
        `fetch_whole_layers` does.
    """

    name: str
    offload: OffloadConfig
    fetch_whole_layers: bool = False


def ablations(num_experts: int, *, slots: int = 4, prefetch: int = 2) -> tuple[Ablation, ...]:
    """Return the four rows of the report's Table 2, from the whole algorithm to none of it.

    The whole algorithm is a least-recently-used cache with prefetch of the next layer's experts.
    The second row has no prefetch. The third has no slots, either: every expert that a token needs
    is fetched, and freed after use. The last fetches all experts of each layer, needed or not.

    Parameters
    ----------
    num_experts
        Experts of a layer.
    slots
        Slots of a layer in the first two rows.
    prefetch
        Experts that are guessed for the next layer in the first row.

    Raises
    ------
    ConfigError
        If there is no slot, or a layer has fewer experts than slots.
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
    """Fetch all experts of a layer before it is computed, inside the ``with`` block.

    They are evicted when the next layer's experts are fetched. Offloading by layers works like
    this, such as accelerate's; no transfer overlaps with compute.

    Raises
    ------
    MixoffError
        If the model has no expert cache.
    """
    cache = cache_of(model)
    slots = cache.slots_per_layer

    def fetch(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, OffloadedExperts)
        cache.resize(0)  # evicts the experts of all other layers
        cache.resize(cache.num_experts)
        for _ in cache.acquire(module.layer, range(cache.num_experts), tokens=len(inputs[0])):
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
    ablations: Sequence[Ablation],
    ids: Sequence[int] | Tensor,
    *,
    prompt: int = 16,
    rounds: int = 3,
    device: str | torch.device = "cpu",
) -> "pd.DataFrame":
    """Return how fast a model decodes a text under each ablation, a row per round and ablation.

    Every round runs all ablations, so that other load on the machine affects all of them alike:
    compare medians. Each run builds the model, reads the prompt, and decodes the other tokens of
    the text one by one (teacher forcing), so that all ablations compute the same tokens.

    Parameters
    ----------
    name_or_path, device
        As `mixoff.build_model` takes them.
    ablations
        What to compare, such as the function `ablations` returns; each name once.
    ids
        The text's tokens [T].
    prompt
        The number of tokens that are read at once, and not timed.

    Returns
    -------
    pandas.DataFrame
        Columns: algorithm, the ablation's name; round, from 0; tokens_per_second; hit_rate, the
        share of needed experts that were in a slot when their layer was reached; nbytes_per_token,
        fetched for demands and for wrong guesses; wait_ms_per_token, for which compute waited for
        experts.

    Raises
    ------
    ConfigError
        If there is no ablation, no round, or no token after the prompt.
    """
    import pandas as pd

    tokens = torch.as_tensor(ids)
    if not (ablations and rounds >= 1 and 1 <= prompt < len(tokens)):
        raise ConfigError(
            f"{len(ablations)} ablations, rounds={rounds}, prompt={prompt} of {len(tokens)} "
            "tokens: give at least one ablation and one round, and a prompt that leaves tokens to "
            "decode."
        )
    rows = [
        (ablation.name, number, *_run(name_or_path, ablation, tokens, prompt, device))
        for number in range(rounds)
        for ablation in ablations
    ]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _run(
    name_or_path: str | Path,
    ablation: Ablation,
    tokens: Tensor,
    prompt: int,
    device: str | torch.device,
) -> tuple[float, float, float, float]:
    """Return one run's measurements, as the columns after `round` hold them."""
    model, cache = build_model(name_or_path, ablation.offload, device=device)
    try:
        with fetch_whole_layers(model) if ablation.fetch_whole_layers else nullcontext():
            seconds, stats = _decode(model, cache, tokens, prompt)
    finally:
        cache.close()
    count = len(tokens) - prompt
    # Fetching a whole layer is a demand of its own, after which the model's demand only hits.
    hit_rate = 0.0 if ablation.fetch_whole_layers else stats.hit_rate
    nbytes = (stats.bytes_moved + stats.bytes_wasted) / count
    return count / seconds, hit_rate, nbytes, stats.wait_ns / count / 1e6


@torch.inference_mode()
def _decode(
    model: PreTrainedModel, cache: ExpertCache, tokens: Tensor, prompt: int
) -> tuple[float, CacheStats]:
    """Return the seconds of decoding all tokens after the prompt, and the cache's statistics."""
    past = growing_cache(model.config)
    ids = tokens[None].to(model.device)  # [1, T]
    model(input_ids=ids[:, :prompt], past_key_values=past)
    before, began = cache.stats(), time.perf_counter()
    for position in range(prompt, len(tokens)):
        logits = model(input_ids=ids[:, position : position + 1], past_key_values=past).logits
    logits.argmax().item()  # a GPU computes asynchronously: this waits until it has finished
    return time.perf_counter() - began, cache.stats() - before
