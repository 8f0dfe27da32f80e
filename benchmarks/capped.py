"""Decoding with less memory than the model takes, beside what people use instead of mixoff.

Run it from the root of a clone, after ``benchmarks/environments.py``, on a machine that does
nothing else: ``.venv/bin/python benchmarks/capped.py``. Models of random weights are made in
``--folder`` and stay there until ``--remove``: *mid* takes 9.1 GB (hidden 1024, inner 3584, 16
layers, 8 experts, top-2, 3.0 GB in bfloat16), *wide* 20 GB, of which 15 are removed once it is
converted (Mixtral's width, 5 layers, all with the same experts, each with bytes of its own).

Each arm runs in a process of its own, whose memory, the page cache included, a control group caps
at ``--share`` of its size; where no control group can be made, the table says so. Arms take
turns, round by round, and before each turn the model's files are dropped from the page cache. All
read the same tokens, drawn at random: 2 to warm up, then ``--tokens`` that are timed. *MB/token* is
what the kernel counted as read from disks for the process. *Agreement* tells how often the most
probable next token was that of the first arm: weights are the same, their types needn't be.

On *mid*, all compute with the same weights in bfloat16. *accelerate* has all experts on disk by its
map of devices; *mapped* gives transformers' model tensors of a mapped file; *llama.cpp* maps its
file, too, and *airllm* is as it comes. mixoff keeps 3 of a layer's 8 experts and guesses the next
layer's two; it has two staging buffers, since with four it would not fit under the cap.

On *wide*, llama.cpp's file is Q2_K throughout (2.6 bits a weight), mixoff's has attention in 4 bits
and experts in 2 (3.06 with their scales). llama.cpp doesn't repack, since that would take memory of
its own; mixoff keeps 2 of a layer's 8 experts, which is what fits beside some 0.3 GB of libraries.
The cap is a share of mixoff's own checkpoint: on *wide* the same bytes are a larger share of
llama.cpp's file, which is smaller, and mixoff was killed at that share of it.
"""

import argparse
import random
import statistics
import sys
from pathlib import Path

from environments import python_of
from peers.models import Models, four_and_two, refuse_without_room
from peers.turns import Arm, decoded_per_s, machine, nbytes_of, print_table, run_rounds, spread
from peers.weights import Shape

from mixoff import Scheme
from mixoff.quantization import Unquantized

MID = Shape(hidden=1024, inner=3584, layers=16)
WIDE = Shape(hidden=4096, inner=14336, layers=5, vocab=4096, repeats=True)
TINY = Shape(hidden=512, inner=768, layers=4, vocab=1024)
SLOTS = {"mid": 3, "wide": 2}
GUESSES, STAGING, AIRLLM_TOKENS = 2, 2, 4
MIXOFF = "mixoff"
BARS = {  # how much faster mixoff is to be
    "accelerate, experts on disk": 3.0,
    "transformers, mapped": 3.0,
    "llama.cpp BF16, mapped": 2.5,
    "airllm": 8.0,
    "llama.cpp Q2_K, mapped": 1.0,
}


def settings(given: argparse.Namespace, shape: Shape, path: Path, **more: object) -> dict:
    """Return a worker's settings."""
    ids = random.Random(0).choices(range(3, shape.vocab), k=given.prompt + given.tokens + 2)
    return {
        "path": str(path),
        "ids": ids,
        "prompt": given.prompt,
        "tokens": given.tokens,
        "threads": given.threads,
        "scratch": str(given.folder),
        **more,
    }


def mixoff_arm(
    given: argparse.Namespace, shape: Shape, path: Path, slots: int, dtype: str = "bfloat16"
) -> Arm:
    offload = {"offload_per_layer": shape.experts - slots, "prefetch": GUESSES, "staging": STAGING}
    told = settings(given, shape, path, offload=offload, dtype=dtype)
    return Arm(MIXOFF, Path(sys.executable), "mixoff_decode.py", told, path)


def llama_arm(given: argparse.Namespace, models: Models, kind: str) -> Arm:
    """Return llama.cpp over a mapped file, which isn't made where there is no environment."""
    name, python = f"llama.cpp {kind}, mapped", python_of("llama")
    if not python.exists() or not wanted(given, name):
        return Arm(name, python, "llama_decode.py", {})
    file = models.gguf(kind)
    told = settings(given, models.shape, file, how="mapped", repack=False)
    return Arm(name, python, "llama_decode.py", told, file)


def unquantized_arms(given: argparse.Namespace, models: Models) -> list[Arm]:
    """Return the arms that compute with weights in bfloat16."""
    shape, source = models.shape, models.original()
    whole = Unquantized("bfloat16")
    arms = [
        Arm(name, python_of("transformers"), "transformers_decode.py", told, source)
        for name, told in (
            ("transformers, mapped", settings(given, shape, source, how="mapped")),
            ("accelerate, experts on disk", settings(given, shape, source, how="accelerate")),
        )
    ]
    if python_of("airllm").exists() and wanted(given, "airllm"):
        shards = models.airllm()
        told = settings(given, shape, source, shards=str(shards))
        told["tokens"] = min(told["tokens"], AIRLLM_TOKENS)
        arms.append(Arm("airllm", python_of("airllm"), "airllm_decode.py", told, shards))
    ours = models.mixoff("bfloat16", Scheme(whole, whole))
    return [*arms, llama_arm(given, models, "BF16"), mixoff_arm(given, shape, ours, SLOTS["mid"])]


def quantized_arms(given: argparse.Namespace, models: Models) -> list[Arm]:
    """Return the arms that compute with quantized weights."""
    ours = models.mixoff("4-2", four_and_two())
    peer = llama_arm(given, models, "Q2_K")
    models.forget_original()
    return [peer, mixoff_arm(given, models.shape, ours, SLOTS["wide"], given.dtype)]


def wanted(given: argparse.Namespace, name: str) -> bool:
    return not given.arms or any(word in name for word in given.arms)


def speeds(arm: Arm) -> list[float]:
    return [decoded_per_s(found) for found in arm.found]


def megabytes(arm: Arm) -> list[float]:
    return [found["nbytes"] / len(found["best"]) / 1e6 for found in arm.found]


def row(arm: Arm, first: Arm) -> list[str]:
    """Return an arm's cells."""
    size = f"{nbytes_of(arm.files) / 1e9:.2f}" if arm.files else "-"
    if not arm.found:
        return [arm.name, size, arm.failure or "-", *["-"] * 7]
    most = [found["group_peak"] / 1e9 for found in arm.found if found["group_peak"]]
    theirs = first.found[0]["best"] if first.found else []
    pairs = [*zip(arm.found[0]["best"], theirs, strict=False)]
    same = sum(a == b for a, b in pairs)
    rates = [found["hit_rate"] for found in arm.found if found.get("hit_rate") is not None]
    return [
        arm.name,
        size,
        spread(speeds(arm)),
        spread(megabytes(arm), 0),
        spread([found["load_s"] for found in arm.found], 1),
        f"{max(found['peak_kb'] for found in arm.found) / 1e6:.2f}",
        f"{max(found['anonymous_kb'] for found in arm.found) / 1e6:.2f}",
        f"{max(most):.2f}" if most else "no cap",
        f"{same} of {len(pairs)}",
        f"{statistics.median(rates):.2f}" if rates else "",
    ]


def report(arms: list[Arm], cap: int, given: argparse.Namespace) -> None:
    """Print the table, and mixoff's ratios."""
    capped = {found["capped"] for arm in arms for found in arm.found}
    limit = f"{cap / 1e9:.2f} GB" if capped == {True} else "NO CAP: no control group to be had"
    print(f"\n{machine()}; {given.threads} thread(s), {given.rounds} rounds, memory {limit}")
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
        if arm is ours or not (arm.found and ours.found):
            continue
        faster = statistics.median(speeds(ours)) / statistics.median(speeds(arm))
        less = statistics.median(megabytes(arm)) / max(1e-9, statistics.median(megabytes(ours)))
        print(
            f"mixoff / {arm.name}: {faster:.2f} times as fast (to reach: {BARS[arm.name]:g}); "
            f"it reads {less:.1f} times as much as mixoff"
        )


def compare(name: str, shape: Shape, given: argparse.Namespace) -> None:
    models = Models(given.folder, f"{name}-tiny" if given.tiny else name, shape)
    arms = (quantized_arms if name == "wide" else unquantized_arms)(given, models)
    assert arms[-1].files
    cap = int(given.share * nbytes_of(arms[-1].files)) + given.allowance
    arms = [arm for arm in arms if wanted(given, arm.name)]
    run_rounds(arms, given.threads, given.rounds, cap)
    report(arms, cap, given)
    if given.remove:
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
    given = parser.parse_args()
    given.allowance = 700 << 20 if given.tiny else 0  # libraries alone take more than a tiny model
    names = ("mid", "wide") if given.model == "both" else (given.model,)
    if not given.tiny:
        refuse_without_room(
            given.folder, (21e9 if "wide" in names else 0) + (10e9 if "mid" in names else 0)
        )
    for name in names:
        compare(name, TINY if given.tiny else {"mid": MID, "wide": WIDE}[name], given)


if __name__ == "__main__":
    main()
