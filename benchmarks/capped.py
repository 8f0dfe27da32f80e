"""Decoding with less memory than the model takes, with mixoff and with other libraries.

Run it from the root of a clone, after ``benchmarks/environments.py``, on an otherwise idle machine:
``.venv/bin/python benchmarks/capped.py``. Models of random weights are made in ``--folder`` and
kept until ``--remove``: *mid* takes 9.1 GB (hidden 1024, inner 3584, 16 layers, 8 experts, top-2,
3.0 GB in bfloat16), *wide* 20 GB, of which 15 are removed once it is converted (Mixtral's width, 5
layers, all with the same experts, each stored separately).

Each arm runs in its own process, whose memory, the page cache included, a control group caps at
``--share`` of the model's size; where no control group can be made, the table says so. Every round
runs all arms, and before each run the model's files are dropped from the page cache. All arms read
the same random tokens: 2 to warm up, then ``--tokens`` that are timed. *MB/token* is what the
kernel counted as read from disks for the process. *Agreement* is how often the most probable next
token was that of the first arm: weights are the same, their types may differ.

On *mid*, all arms compute with the same weights in bfloat16. *accelerate* has all experts on disk
by its device map; *mapped* gives transformers' model the tensors of a mapped file; *llama.cpp* maps
its file, too, and *airllm* has its defaults. mixoff has 3 slots for a layer's 8 experts and guesses
two of the next layer; it has two staging buffers, since four don't fit under the cap.

On *wide*, llama.cpp's file is Q2_K throughout (2.6 bits a weight), mixoff's has attention in 4 bits
and experts in 2 (3.06 with their scales). llama.cpp doesn't repack weights, since that would take
additional memory; mixoff has 2 slots for a layer's 8 experts, which fit beside some 0.3 GB of
libraries. The cap is a share of mixoff's own checkpoint: on *wide* the same bytes are a larger
share of llama.cpp's file, which is smaller. Capped at that share of the smaller file, mixoff was
killed.
"""

import argparse
import random
import statistics
import sys
from pathlib import Path

from environments import python_of
from peers.models import Models, four_and_two, refuse_without_room
from peers.rounds import Arm, decoded_per_s, machine, nbytes_of, print_table, run_rounds, spread
from peers.weights import Shape

from mixoff import Scheme
from mixoff.quantization import Unquantized

MID = Shape(hidden=1024, inner=3584, layers=16)
WIDE = Shape(hidden=4096, inner=14336, layers=5, vocab=4096, repeats=True)
TINY = Shape(hidden=512, inner=768, layers=4, vocab=1024)
SLOTS = {"mid": 3, "wide": 2}
GUESSES, STAGING, AIRLLM_TOKENS = 2, 2, 4
MIXOFF = "mixoff"
BARS = {  # the speedup that mixoff should reach
    "accelerate, experts on disk": 3.0,
    "transformers, mapped": 3.0,
    "llama.cpp BF16, mapped": 2.5,
    "airllm": 8.0,
    "llama.cpp Q2_K, mapped": 1.0,
}


def settings(options: argparse.Namespace, shape: Shape, path: Path, **more: object) -> dict:
    """Return a worker's settings."""
    ids = random.Random(0).choices(range(3, shape.vocab), k=options.prompt + options.tokens + 2)
    return {
        "path": str(path),
        "ids": ids,
        "prompt": options.prompt,
        "tokens": options.tokens,
        "threads": options.threads,
        "scratch": str(options.folder),
        **more,
    }


def mixoff_arm(
    options: argparse.Namespace, shape: Shape, path: Path, slots: int, dtype: str = "bfloat16"
) -> Arm:
    offload = {"offload_per_layer": shape.experts - slots, "prefetch": GUESSES, "staging": STAGING}
    worker = settings(options, shape, path, offload=offload, dtype=dtype)
    return Arm(MIXOFF, Path(sys.executable), "mixoff_decode.py", worker, path)


def llama_arm(options: argparse.Namespace, models: Models, kind: str) -> Arm:
    """Return llama.cpp over a mapped file, which isn't made without llama.cpp's environment."""
    name, python = f"llama.cpp {kind}, mapped", python_of("llama")
    if not python.exists() or not wanted(options, name):
        return Arm(name, python, "llama_decode.py", {})
    file = models.gguf(kind)
    worker = settings(options, models.shape, file, how="mapped", repack=False)
    return Arm(name, python, "llama_decode.py", worker, file)


def unquantized_arms(options: argparse.Namespace, models: Models) -> list[Arm]:
    """Return the arms that compute with weights in bfloat16."""
    shape, source = models.shape, models.original()
    whole = Unquantized("bfloat16")
    arms = [
        Arm(name, python_of("transformers"), "transformers_decode.py", worker, source)
        for name, worker in (
            ("transformers, mapped", settings(options, shape, source, how="mapped")),
            ("accelerate, experts on disk", settings(options, shape, source, how="accelerate")),
        )
    ]
    if python_of("airllm").exists() and wanted(options, "airllm"):
        shards = models.airllm()
        worker = settings(options, shape, source, shards=str(shards))
        worker["tokens"] = min(worker["tokens"], AIRLLM_TOKENS)
        arms.append(Arm("airllm", python_of("airllm"), "airllm_decode.py", worker, shards))
    ours = models.mixoff("bfloat16", Scheme(whole, whole))
    return [
        *arms,
        llama_arm(options, models, "BF16"),
        mixoff_arm(options, shape, ours, SLOTS["mid"]),
    ]


def quantized_arms(options: argparse.Namespace, models: Models) -> list[Arm]:
    """Return the arms that compute with quantized weights."""
    ours = models.mixoff("4-2", four_and_two())
    peer = llama_arm(options, models, "Q2_K")
    models.remove_original()
    return [peer, mixoff_arm(options, models.shape, ours, SLOTS["wide"], options.dtype)]


def wanted(options: argparse.Namespace, name: str) -> bool:
    return not options.arms or any(word in name for word in options.arms)


def speeds(arm: Arm) -> list[float]:
    return [decoded_per_s(result) for result in arm.results]


def megabytes(arm: Arm) -> list[float]:
    return [result["nbytes"] / len(result["best"]) / 1e6 for result in arm.results]


def row(arm: Arm, first: Arm) -> list[str]:
    """Return an arm's cells."""
    size = f"{nbytes_of(arm.files) / 1e9:.2f}" if arm.files else "-"
    if not arm.results:
        return [arm.name, size, arm.failure or "-", *["-"] * 7]
    peaks = [result["group_peak"] / 1e9 for result in arm.results if result["group_peak"]]
    first_tokens = first.results[0]["best"] if first.results else []
    pairs = [*zip(arm.results[0]["best"], first_tokens, strict=False)]
    same = sum(a == b for a, b in pairs)
    hit_rates = (result.get("hit_rate") for result in arm.results)
    rates = [rate for rate in hit_rates if rate is not None]
    return [
        arm.name,
        size,
        spread(speeds(arm)),
        spread(megabytes(arm), 0),
        spread([result["load_s"] for result in arm.results], 1),
        f"{max(result['peak_kb'] for result in arm.results) / 1e6:.2f}",
        f"{max(result['anonymous_kb'] for result in arm.results) / 1e6:.2f}",
        f"{max(peaks):.2f}" if peaks else "no cap",
        f"{same} of {len(pairs)}",
        f"{statistics.median(rates):.2f}" if rates else "",
    ]


def report(arms: list[Arm], cap: int, options: argparse.Namespace) -> None:
    """Print the table, and mixoff's ratios to the other arms."""
    capped = {result["capped"] for arm in arms for result in arm.results}
    limit = f"{cap / 1e9:.2f} GB" if capped == {True} else "NO CAP: no control group to be had"
    print(f"\n{machine()}; {options.threads} thread(s), {options.rounds} rounds, memory {limit}")
    print_table(
        [
            "arm",
            "files GB",
            "tokens/s: median (min - max)",
            "MB/token",
            "load s",
            "peak GB",
            "of it anonymous",
            "group's peak",
            "agreement",
            "hit rate",
        ],
        [row(arm, arms[0]) for arm in arms],
    )
    ours = next(arm for arm in arms if arm.name == MIXOFF)
    for arm in arms:
        if arm is ours or not (arm.results and ours.results):
            continue
        faster = statistics.median(speeds(ours)) / statistics.median(speeds(arm))
        less = statistics.median(megabytes(arm)) / max(1e-9, statistics.median(megabytes(ours)))
        print(
            f"mixoff / {arm.name}: {faster:.2f} times as fast (to reach: {BARS[arm.name]:g}); "
            f"it reads {less:.1f} times as much as mixoff"
        )


def compare(name: str, shape: Shape, options: argparse.Namespace) -> None:
    models = Models(options.folder, f"{name}-tiny" if options.tiny else name, shape)
    arms = (quantized_arms if name == "wide" else unquantized_arms)(options, models)
    assert arms[-1].files
    cap = int(options.share * nbytes_of(arms[-1].files)) + options.allowance
    arms = [arm for arm in arms if wanted(options, arm.name)]
    run_rounds(arms, options.threads, options.rounds, cap)
    report(arms, cap, options)
    if options.remove:
        models.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".bench"), help="for models")
    parser.add_argument("--model", choices=("mid", "wide", "both"), default="both")
    parser.add_argument("--arms", nargs="*", help="only arms with these words in their names")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=10)
    parser.add_argument("--prompt", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.55, help="of mixoff's checkpoint")
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="mixoff's on wide")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the script")
    parser.add_argument("--remove", action="store_true", help="remove the models at the end")
    options = parser.parse_args()
    options.allowance = (
        700 << 20 if options.tiny else 0
    )  # libraries alone take more than a tiny model
    names = ("mid", "wide") if options.model == "both" else (options.model,)
    if not options.tiny:
        refuse_without_room(
            options.folder, (21e9 if "wide" in names else 0) + (10e9 if "mid" in names else 0)
        )
    for name in names:
        compare(name, TINY if options.tiny else {"mid": MID, "wide": WIDE}[name], options)


if __name__ == "__main__":
    main()
