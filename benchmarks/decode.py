"""Decoding, and reading a prompt, with the whole model in memory: mixoff, llama.cpp, transformers.

Run it from the root of a clone, after ``benchmarks/environments.py transformers llama``, on an
otherwise idle machine: ``.venv/bin/python benchmarks/decode.py``. It takes 22 GB of disk in
``--folder`` while it makes its models, and 8 after that, unless ``--stock`` keeps the original for
transformers. Models are kept for the next run, until ``--remove``.

The model has Mixtral-8x7B's width (hidden 4096, inner 14336, 8 experts, top-2), random weights and
few layers: the time of a layer is the difference between two depths, divided by their difference in
layers. All layers have the same experts, each stored separately, so that they are quantized once.
Each arm runs in its own process, and every round runs all arms. All read a prompt of ``--prompt``
tokens (once to warm up, then timed), and decode the same ``--tokens`` tokens after it; a token's
time is the median of a run. *mixoff* has attention in 4 bits and experts in 2, in groups of 16
(3.06 bits a weight with their scales); llama.cpp's files are Q2_K throughout (2.6 bits), with
weights that it repacks at loading (*repacked*) and with weights as they are; the head has 16 bits
for both. *transformers* computes in bfloat16. Models are loaded from disk: their files are dropped
from the page cache before each run. *loaded* and *peak* are the peak resident memory until the
model is loaded, and until the end.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from environments import python_of
from peers.models import Models, four_and_two, refuse_without_room
from peers.rounds import Arm, machine, nbytes_of, print_table, run_rounds, spread
from peers.weights import Shape

WIDE = Shape(hidden=4096, inner=14336, layers=5, vocab=4096, repeats=True)
TINY = Shape(hidden=512, inner=768, layers=5, vocab=1024, repeats=True)
DEPTHS, STOCK_DEPTHS = (2, 5), (1, 2)
MIXOFF, REPACKED, AS_IT_IS = "mixoff 4/2", "llama.cpp Q2_K, repacked", "llama.cpp Q2_K, as it is"
STOCK = "transformers bfloat16"


def settings(options: argparse.Namespace, shape: Shape, path: Path, **more: object) -> dict:
    """Return a worker's settings."""
    count = options.prompt + options.tokens + 2
    return {
        "path": str(path),
        "ids": random.Random(0).choices(range(3, shape.vocab), k=count),
        "prompt": options.prompt,
        "tokens": options.tokens,
        "threads": options.threads,
        "scratch": str(options.folder),
        **more,
    }


def arms(options: argparse.Namespace, models: Models) -> Iterator[tuple[str, int, Arm]]:
    """Yield the name, the layers and the arm of everything that is compared."""
    shape = models.shape
    all_in_memory = {"offload_per_layer": 0, "prefetch": 0}
    for layers in DEPTHS:
        path = models.mixoff("4-2", four_and_two(), layers)
        worker = settings(options, shape, path, offload=all_in_memory, dtype=options.dtype)
        arm = Arm(f"{MIXOFF}, {layers}", Path(sys.executable), "mixoff_decode.py", worker, path)
        yield MIXOFF, layers, arm
    for name, repack in ((REPACKED, True), (AS_IT_IS, False)):
        for layers in DEPTHS:
            python = python_of("llama")
            path = models.gguf("Q2_K", layers) if python.exists() else models.folder
            worker = settings(options, shape, path, how="memory", repack=repack)
            yield name, layers, Arm(f"{name}, {layers}", python, "llama_decode.py", worker, path)
    if not options.stock:
        models.remove_original()
        return
    for layers in STOCK_DEPTHS:
        path = models.original(layers)
        worker = settings(options, shape, path, how="memory")
        name, python = f"{STOCK}, {layers}", python_of("transformers")
        yield STOCK, layers, Arm(name, python, "transformers_decode.py", worker, path)


def token_ms(result: dict) -> float:
    return 1e3 * statistics.median(result["token_s"])


def prompt_ms(result: dict) -> float:
    return 1e3 * float(result.get("prefill_s", "nan"))


def layer_ms(few: Arm, many: Arm, layers: int, of: Callable[[dict], float]) -> list[float]:
    """Return the milliseconds of one layer in each round."""
    pairs = zip(few.results, many.results, strict=False)
    return [(of(after) - of(before)) / layers for before, after in pairs]


def rows(measured: dict[str, dict[int, Arm]]) -> Iterator[list[str]]:
    """Yield a row for each arm: both depths, and a layer."""
    for name, depths in measured.items():
        (few, first), (many, last) = sorted(depths.items())
        if not (first.results and last.results):
            yield [name, f"{few}, {many}", first.failure or last.failure, *["-"] * 6]
            continue
        yield [
            name,
            f"{few}, {many}",
            spread(map(token_ms, last.results), 1),
            spread(layer_ms(first, last, many - few, token_ms), 1),
            spread(map(prompt_ms, last.results), 0),
            spread(layer_ms(first, last, many - few, prompt_ms), 0),
            spread([result["load_s"] for result in last.results], 1),
            f"{max(result['load_peak_kb'] for result in last.results) / 1e6:.2f}",
            f"{max(result['peak_kb'] for result in last.results) / 1e6:.2f}",
        ]


def report(measured: dict[str, dict[int, Arm]], options: argparse.Namespace) -> None:
    """Print the table, and mixoff's ratios to the other arms."""
    print(
        f"\n{machine()}; {options.threads} thread(s), {options.rounds} rounds, a prompt of "
        f"{options.prompt} tokens, {options.tokens} decoded; times are of all layers unless said"
    )
    print_table(
        [
            "arm",
            "layers",
            "ms/token: median (min - max)",
            "ms/token and layer",
            "prompt ms",
            "prompt ms/layer",
            "load s",
            "loaded GB",
            "peak GB",
        ],
        [*rows(measured)],
    )
    for name, depths in measured.items():
        (few, first), (many, last) = sorted(depths.items())
        own = measured[MIXOFF]
        if name == MIXOFF or not (first.results and last.results and own[DEPTHS[0]].results):
            continue
        for what, of in (("decodes a layer", token_ms), ("reads a layer's prompt", prompt_ms)):
            ours = layer_ms(own[DEPTHS[0]], own[DEPTHS[1]], DEPTHS[1] - DEPTHS[0], of)
            theirs = layer_ms(first, last, many - few, of)
            ratio = statistics.median(theirs) / statistics.median(ours)
            print(f"mixoff {what} {ratio:.2f} times as fast as {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".bench"), help="for models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="that mixoff computes in")
    parser.add_argument("--stock", action="store_true", help="add transformers in bfloat16")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the script")
    parser.add_argument("--remove", action="store_true", help="remove the models at the end")
    options = parser.parse_args()
    models = Models(
        options.folder, "wide-tiny" if options.tiny else "wide", TINY if options.tiny else WIDE
    )
    if not options.tiny:
        refuse_without_room(options.folder, 23e9)
    measured: dict[str, dict[int, Arm]] = {}
    for name, layers, arm in arms(options, models):
        measured.setdefault(name, {})[layers] = arm
    everything = [arm for depths in measured.values() for arm in depths.values()]
    print(f"files: {', '.join(f'{a.name} {nbytes_of(a.files) / 1e9:.2f} GB' for a in everything)}")
    run_rounds(everything, options.threads, options.rounds)
    report(measured, options)
    if options.remove:
        models.remove()


if __name__ == "__main__":
    main()
