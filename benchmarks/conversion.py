"""Converts a random model of Mixtral-8x7B's width: peak memory, seconds a layer, and sizes.

The source is written as a stream, in files as large as the hub's, and removed at the end. The
conversion runs in its own process, whose peak resident memory is read from the system.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from transformers import MixtralConfig

from mixoff.checkpoints.safetensors_write import NewTensor, write_shard
from mixoff.families.mixtral import Mixtral

SHARD_NBYTES = 5 * 10**9
CHUNK = 1 << 24  # weights
CHILD = """
import sys, time
from mixoff import (quantize_checkpoint)
quantize_checkpoint(sys.argv[1], sys.argv[2], progress=False)
status = open("/proc/self/status").read()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def tensors_of(model: Mixtral) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each tensor, layer by layer, as the hub's files have them."""
    rest = dict(model.non_expert_shapes())
    yield "model.embed_tokens.weight", rest.pop("model.embed_tokens.weight")
    for layer in range(model.num_layers):
        prefix = f"model.layers.{layer}."
        for name in [name for name in rest if name.startswith(prefix)]:
            yield name.replace(".mlp.", ".block_sparse_moe."), rest.pop(name)
        for expert in range(model.num_experts):
            for name, shape in chain(*model.expert_tensors(layer, expert).values()):
                yield name.replace(".mlp.", ".block_sparse_moe."), shape
    yield from rest.items()


def new_tensor(shape: tuple[int, ...], block: torch.Tensor) -> NewTensor:
    """Return a tensor that repeats the weights of a block."""
    count = torch.Size(shape).numel()

    def chunks() -> Iterator[torch.Tensor]:
        for start in range(0, count, CHUNK):
            yield block[: min(CHUNK, count - start)]

    return NewTensor(torch.bfloat16, shape, -(-count // CHUNK), chunks())


def write_source(folder: Path, config: MixtralConfig) -> int:
    """Write a model of random weights, and return its size in bytes."""
    settings = {**config.to_dict(), "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(settings))
    block = (torch.randn(CHUNK, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    shards: list[dict[str, NewTensor]] = [{}]
    for name, shape in tensors_of(Mixtral(settings, folder / "config.json")):
        tensor = new_tensor(shape, block)
        if sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > SHARD_NBYTES:
            shards.append({})
        shards[-1][name] = tensor
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_shard(folder / file, tensors, {})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return size_of(folder)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def finish_times(model: Path, process: "subprocess.Popen[str]") -> list[float]:
    """Return the times at which the files of layers were finished."""
    seen: dict[str, float] = {}
    while process.poll() is None:
        for path in model.glob("layer-*.safetensors"):
            seen.setdefault(path.name, time.perf_counter())
        time.sleep(0.02)
    return sorted(seen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=14336)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    config = MixtralConfig(
        hidden_size=options.hidden,
        intermediate_size=options.inner,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden // 128),
        num_key_value_heads=max(1, options.hidden // 512),
    )
    layer_weights = 24 * options.hidden * options.inner + 3 * options.hidden**2
    needed = 3 * (options.layers * layer_weights + 2 * 32000 * options.hidden)
    free = shutil.disk_usage(options.folder).free
    if needed > free:
        sys.exit(
            f"needs about {needed / 1e9:.0f} GB in {options.folder}; {free / 1e9:.0f} are free"
        )
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        measure(Path(temporary), config)


def measure(folder: Path, config: MixtralConfig) -> None:
    source, target = folder / "source", folder / "model"
    source.mkdir()
    started = time.perf_counter()
    nbytes = write_source(source, config)
    print(f"source: {nbytes / 1e9:.2f} GB bf16, written in {time.perf_counter() - started:.0f} s")
    started = time.perf_counter()
    words = [sys.executable, "-c", CHILD, str(source), str(target)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        times = finish_times(folder / ".model.partial" / "model", process)
        seconds = time.perf_counter() - started
        assert process.stdout
        peak_kb = process.stdout.read()
    if process.returncode:
        sys.exit(f"the conversion ended with {process.returncode}")
    gaps = [after - before for before, after in zip([started, *times], times, strict=False)]
    layer = statistics.median(gaps)
    print(f"peak resident memory: {int(peak_kb) / 2**20:.2f} GiB")
    print(f"a layer: {layer:.1f} s (median of {len(gaps)}); 32 layers: {32 * layer / 60:.0f} min")
    print(f"all of it, verified: {seconds:.0f} s, {nbytes / seconds / 1e6:.0f} MB/s of the source")
    print(f"checkpoint: {size_of(target) / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
