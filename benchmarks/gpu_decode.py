"""How fast Mixtral's layers decode on a GPU whose experts lie in host memory, in several ways.

Run it from the root of a clone, on a machine with a GPU: ``.venv/bin/python
benchmarks/gpu_decode.py``. It writes a checkpoint of ``--layers`` layers of Mixtral-8x7B's shape,
4 bits for attention and 2 for experts, weights nobody trained (`synthetic`), and deletes it.

Ways take turns, round by round, over the same tokens, drawn at random: what each expert is asked
for is the same in all. *resident* has every expert on the device; the others keep 4 of 8 a layer
there, and the rest in pinned host memory: misses are fetched or computed where they lie. Printed:
milliseconds a token and layer, median, least and most of the rounds; hit rate; MB moved a token.
Embeddings and head cost the same in all and are part of it.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from synthetic import Shape, write_checkpoint
from transformers import DynamicCache

from mixoff import OffloadConfig, build_model
from mixoff.quantization import Scheme

WARM_UP = 4


@dataclass
class Way:
    """One way to decode, and what was measured of it."""

    name: str
    offload: OffloadConfig
    kernels: str
    ms: list[float] = field(default_factory=list)
    hit_rate: float = 0.0
    mb: float = 0.0


def ways() -> list[Way]:
    """Return what is compared."""

    def settings(**given: object) -> OffloadConfig:
        return OffloadConfig(offload_per_layer=4, host_memory="auto", **given)

    resident = OffloadConfig(offload_per_layer=0)
    return [
        Way("resident, torch", resident, "torch"),
        Way("resident, triton", resident, "auto"),
        Way("fetch, torch", settings(), "torch"),
        Way("fetch", settings(), "auto"),
        Way("fetch, prefetch 2", settings(prefetch=2), "auto"),
        Way("compute", settings(miss="compute"), "auto"),
        Way("auto", settings(miss="auto"), "auto"),
    ]


@torch.inference_mode()
def decode(way: Way, folder: Path, tokens: list[int], layers: int) -> None:
    """Load a model, let it read the tokens one by one, and note what that took."""
    model, cache = build_model(folder, way.offload, device="cuda", kernels=way.kernels)
    past = DynamicCache(config=model.config)
    before, start = cache.stats(), 0.0
    for number, token in enumerate(tokens):
        if number == WARM_UP:
            torch.cuda.synchronize()
            before, start = cache.stats(), time.perf_counter()
        model(torch.tensor([[token]], device="cuda"), past_key_values=past, use_cache=True)
    torch.cuda.synchronize()
    count = len(tokens) - WARM_UP
    way.ms.append(1e3 * (time.perf_counter() - start) / count / layers)
    found = cache.stats() - before
    way.hit_rate, way.mb = found.hit_rate, found.bytes_moved / count / 1e6
    del model, cache, past
    torch.cuda.empty_cache()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This needs a GPU that CUDA can use.")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 32000, (WARM_UP + given.tokens,), generator=generator).tolist()
    measured = ways()
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_checkpoint(Shape(layers=given.layers), Scheme(), Path(scratch) / "model")
        for _ in range(given.rounds):
            for way in measured:
                decode(way, folder, tokens, given.layers)
    print(f"{torch.cuda.get_device_name()}, {given.layers} layers; ms a token and layer:")
    for way in measured:
        print(
            f"{way.name:20} {statistics.median(way.ms):7.3f} "
            f"({min(way.ms):.3f} - {max(way.ms):.3f}) hit rate {way.hit_rate:.2f} "
            f"{way.mb:8.1f} MB a token"
        )


if __name__ == "__main__":
    main()
