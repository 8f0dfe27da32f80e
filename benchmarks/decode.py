"""Decoding and reading a prompt with all of a model in memory, beside llama.cpp and transformers.

Run it from the root of a clone, after ``benchmarks/environments.py transformers llama``, on a
machine that does nothing else: ``.venv/bin/python benchmarks/decode.py``. It takes 22 GB of disk in
``--folder`` while it makes its models, and 8 after that, unless ``--stock`` keeps the original for
transformers. Models stay there for the next run, until ``--remove``.

The model has Mixtral-8x7B's width (hidden 4096, inner 14336, 8 experts, top-2), random weights and
few layers: what a layer takes is the difference of two depths, over their difference in layers. All
layers have the same experts, each with bytes of its own, so that they are quantized once.
Each arm runs in a process of its own, and arms take turns, round by round. All read a prompt of
``--prompt`` tokens (once to warm up, then timed), and decode ``--tokens`` tokens after it, the same
for all; a token's time is the median of a turn. *mixoff* has attention in 4 bits and experts in 2,
in groups of 16 (3.06 bits a weight with their scales); llama.cpp's files are Q2_K throughout (2.6
bits), with the weights that it arranges anew at loading (*repacked*) and as they are; the head has
16 bits for both. *transformers* computes in bfloat16. Loading is from disk: files are dropped from
the page cache before each turn. *loaded* and *peak* are the most resident memory until the model
was there, and until the end.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from environments import python_of
from peers.models import Models, four_and_two, refuse_without_room
from peers.turns import Arm, machine, nbytes_of, print_table, run_rounds, spread
from peers.weights import Shape

WIDE = Shape(hidden=4096, inner=14336, layers=5, vocab=4096, repeats=True)
TINY = Shape(hidden=512, inner=768, layers=5, vocab=1024, repeats=True)
DEPTHS, STOCK_DEPTHS = (2, 5), (1, 2)
MIXOFF, REPACKED, AS_IT_IS = "mixoff 4/2", "llama.cpp Q2_K, repacked", "llama.cpp Q2_K, as it is"
STOCK = "transformers bfloat16"


def settings(given: argparse.Namespace, shape: Shape, path: Path, **more: object) -> dict:
    """Return a worker's settings."""
    count = given.prompt + given.tokens + 2
    return {
        "path": str(path),
        "ids": random.Random(0).choices(range(3, shape.vocab), k=count),
        "prompt": given.prompt,
        "tokens": given.tokens,
        "threads": given.threads,
        "scratch": str(given.folder),
        **more,
    }


def arms(given: argparse.Namespace, models: Models) -> Iterator[tuple[str, int, Arm]]:
    """Yield name, layers and arm of all that is compared."""
    shape = models.shape
    everything = {"offload_per_layer": 0, "prefetch": 0}
    for layers in DEPTHS:
        path = models.mixoff("4-2", four_and_two(), layers)
        told = settings(given, shape, path, offload=everything, dtype=given.dtype)
        arm = Arm(f"{MIXOFF}, {layers}", Path(sys.executable), "mixoff_decode.py", told, path)
        yield MIXOFF, layers, arm
    for name, repack in ((REPACKED, True), (AS_IT_IS, False)):
        for layers in DEPTHS:
            python = python_of("llama")
            path = models.gguf("Q2_K", layers) if python.exists() else models.folder
            told = settings(given, shape, path, how="memory", repack=repack)
            yield name, layers, Arm(f"{name}, {layers}", python, "llama_decode.py", told, path)
    if not given.stock:
        models.forget_original()
        return
    for layers in STOCK_DEPTHS:
        path = models.original(layers)
        told = settings(given, shape, path, how="memory")
        python = python_of("transformers")
        yield STOCK, layers, Arm(f"{STOCK}, {layers}", python, "transformers_decode.py", told, path)


def token_ms(found: dict) -> float:
    return 1e3 * statistics.median(found["token_s"])


def prompt_ms(found: dict) -> float:
    return 1e3 * float(found.get("prefill_s", "nan"))


def layer_ms(few: Arm, many: Arm, layers: int, of: Callable[[dict], float]) -> list[float]:
    """Return what a layer takes, round by round."""
    pairs = zip(few.found, many.found, strict=False)
    return [(of(after) - of(before)) / layers for before, after in pairs]


def rows(found: dict[str, dict[int, Arm]]) -> Iterator[list[str]]:
    """Yield a row for each arm: both depths, and a layer."""
    for name, depths in found.items():
        (few, first), (many, last) = sorted(depths.items())
        if not (first.found and last.found):
            yield [name, f"{few}, {many}", first.failure or last.failure, *["-"] * 6]
            continue
        yield [
            name,
            f"{few}, {many}",
            spread(map(token_ms, last.found), 1),
            spread(layer_ms(first, last, many - few, token_ms), 1),
            spread(map(prompt_ms, last.found), 0),
            spread(layer_ms(first, last, many - few, prompt_ms), 0),
            spread([one["load_s"] for one in last.found], 1),
            f"{max(one['load_peak_kb'] for one in last.found) / 1e6:.2f}",
            f"{max(one['peak_kb'] for one in last.found) / 1e6:.2f}",
        ]


def report(found: dict[str, dict[int, Arm]], given: argparse.Namespace) -> None:
    """Print the table, and mixoff's ratios."""
    print(
        f"\n{machine()}; {given.threads} thread(s), {given.rounds} rounds, a prompt of "
        f"{given.prompt} tokens, {given.tokens} decoded; what isn't of a layer is of all layers"
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
        [*rows(found)],
    )
    for name, depths in found.items():
        (few, first), (many, last) = sorted(depths.items())
        own = found[MIXOFF]
        if name == MIXOFF or not (first.found and last.found and own[DEPTHS[0]].found):
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
    given = parser.parse_args()
    models = Models(
        given.folder, "wide-tiny" if given.tiny else "wide", TINY if given.tiny else WIDE
    )
    if not given.tiny:
        refuse_without_room(given.folder, 23e9)
    found: dict[str, dict[int, Arm]] = {}
    for name, layers, arm in arms(given, models):
        found.setdefault(name, {})[layers] = arm
    everything = [arm for depths in found.values() for arm in depths.values()]
    print(f"files: {', '.join(f'{a.name} {nbytes_of(a.files) / 1e9:.2f} GB' for a in everything)}")
    run_rounds(everything, given.threads, given.rounds)
    report(found, given)
    if given.remove:
        models.remove()


if __name__ == "__main__":
    main()
