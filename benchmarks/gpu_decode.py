"""Decoding speed of Mixtral's layers on a GPU with experts in host memory, under several settings.

Run it from the root of a clone, on a machine with a GPU: ``.venv/bin/python
benchmarks/gpu_decode.py``. It writes a checkpoint of ``--layers`` layers of Mixtral-8x7B's shape,
4 bits for attention and 2 for experts, with random weights (`synthetic`), and deletes it.

Every round runs all arms over the same random tokens, so the demands of experts are the same in
all. *resident* has every expert on the device; the others have 4 of 8 slots in each layer, and the
other experts in pinned host memory: misses are fetched, or computed on the CPU. Printed are
milliseconds a token and layer (median, least and most of the rounds), hit rate, and MB moved a
token. Embeddings and head take the same time in all arms and are included.
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
class Arm:
    """Settings to decode with, and their measurements."""

    name: str
    offload: OffloadConfig
    kernels: str
    ms: list[float] = field(default_factory=list)
    hit_rate: float = 0.0
    mb: float = 0.0


def arms() -> list[Arm]:
    """Return the settings that are compared."""

    def half(**settings: object) -> OffloadConfig:
        return OffloadConfig(offload_per_layer=4, host_memory="auto", **settings)

    resident = OffloadConfig(offload_per_layer=0)
    return [
        Arm("resident, torch", resident, "torch"),
        Arm("resident, triton", resident, "auto"),
        Arm("fetch, torch", half(), "torch"),
        Arm("fetch", half(), "auto"),
        Arm("fetch, prefetch 2", half(prefetch=2), "auto"),
        Arm("compute", half(miss="compute"), "auto"),
        Arm("auto", half(miss="auto"), "auto"),
    ]


@torch.inference_mode()
def decode(arm: Arm, folder: Path, tokens: list[int], layers: int) -> None:
    """Load a model, decode the tokens one by one, and add the measurements to the arm."""
    model, cache = build_model(folder, arm.offload, device="cuda", kernels=arm.kernels)
    past = DynamicCache(config=model.config)
    before, start = cache.stats(), 0.0
    for number, token in enumerate(tokens):
        if number == WARM_UP:
            torch.cuda.synchronize()
            before, start = cache.stats(), time.perf_counter()
        model(torch.tensor([[token]], device="cuda"), past_key_values=past, use_cache=True)
    torch.cuda.synchronize()
    count = len(tokens) - WARM_UP
    arm.ms.append(1e3 * (time.perf_counter() - start) / count / layers)
    stats = cache.stats() - before
    arm.hit_rate, arm.mb = stats.hit_rate, stats.bytes_moved / count / 1e6
    del model, cache, past
    torch.cuda.empty_cache()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This needs a GPU that CUDA can use.")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 32000, (WARM_UP + options.tokens,), generator=generator).tolist()
    measured = arms()
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_checkpoint(Shape(layers=options.layers), Scheme(), Path(scratch) / "model")
        for _ in range(options.rounds):
            for arm in measured:
                decode(arm, folder, tokens, options.layers)
    print(f"{torch.cuda.get_device_name()}, {options.layers} layers; ms a token and layer:")
    for arm in measured:
        print(
            f"{arm.name:20} {statistics.median(arm.ms):7.3f} "
            f"({min(arm.ms):.3f} - {max(arm.ms):.3f}) hit rate {arm.hit_rate:.2f} "
            f"{arm.mb:8.1f} MB a token"
        )


if __name__ == "__main__":
    main()
