"""A model of Mixtral-8x7B's whole shape, with random weights, decoded within a memory budget.

Run it from the root of a clone, on an otherwise idle machine:
``.venv/bin/python benchmarks/whole_mixtral.py --folder FOLDER``. It writes 18 GB into the folder,
once (two minutes; ``--keep`` leaves them there for the next run), and takes 12 GiB of memory.

The checkpoint has attention at 4 bits in groups of 64, experts at 2 bits in groups of 16 with 8-bit
scales, and mixoff's own files with checksums; `benchmarks/synthetic.py` describes its weights.
Another process loads it with `mixoff.build_model`, in a control group whose memory is capped at the
budget where one can be made, page cache included, and decodes. Experts are read from disk with
direct I/O; LRU keeps some in as many slots as the plan fits into the budget.

Time doesn't depend on the values of weights, but on the experts that tokens choose, and random
weights don't route like trained ones. So two streams of tokens are decoded, whose routing is known.
*random*: each token is random, and its routing is almost independent of the previous token's: about
slots / experts are hits, and a cache has no pattern to use. *repeating*: a token is the previous
one with a probability of ``--repeat``, and then chooses mostly the same experts. *alike* is the
share of a token's experts that the previous token chose, too; `benchmarks/inflated.py` prints it,
and the hit rate, for a trained model's routing. Guesses of the next layer's experts are easier the
less a layer changes the hidden states; *guessed* is the share of misses that were fetched ahead.

Every round runs each stream with and without prefetch. *MB* are those that the cache moved, wrong
guesses included; *MB_read* all that the system counted as read for the process. The time of a token
is divided into experts, attention, the head, waiting for experts, and the rest: Python's and
torch's own time, with routers, norms and guesses.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from decoding import WARM_UP, Run, guess, status, summary
from memory_cap import Finished, evict, run_capped
from synthetic import Shape, write_checkpoint
from transformers.utils import logging

from mixoff import OffloadConfig, Scheme, plan_memory
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.units import format_nbytes, parse_nbytes


def stream(length: int, vocab: int, repeat: float, seed: int) -> list[int]:
    """Return random tokens, each equal to the previous one with a probability."""
    rng, tokens = random.Random(seed), [0]
    for _ in range(length):
        repeats = rng.random() < repeat
        tokens.append(tokens[-1] if repeats else rng.randrange(vocab))
    return tokens[1:]


def inside(options: argparse.Namespace) -> None:
    """Load the checkpoint and decode, in a process with capped memory, and print JSON."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(options.threads)
    settings: dict[str, Any] = {"io": options.io, "policy": options.policy}
    if options.slots is None:
        settings["device_memory"] = options.budget
    else:
        settings["offload_per_layer"] = options.experts - options.slots
    offload = OffloadConfig(**settings)
    plan = asdict(plan_memory(open_checkpoint(options.checkpoint), offload))
    libraries = status("VmRSS")
    run = Run(options.checkpoint, offload, options.kernels)
    facts = {"load_seconds": run.load_seconds, "libraries": libraries, "loaded": status("VmHWM")}
    began = time.perf_counter()
    run.read(stream(options.prompt, options.vocab, 0, seed=-1))
    facts["prompt_seconds"] = time.perf_counter() - began
    rows = []
    for number in range(options.rounds):
        for name, repeat in (("random", 0.0), ("repeating", options.repeat)):
            tokens = stream(WARM_UP + options.tokens, options.vocab, repeat, seed=number)
            for guesses in dict.fromkeys((0, options.prefetch)):
                guess(run, guesses)
                rows.append({"stream": name, "prefetch": guesses, **run.forced(tokens)})
    facts["peak"] = status("VmHWM")
    print(json.dumps({"plan": plan, "facts": facts, "rows": rows}))


def report(results: dict[str, Any], finished: Finished, options: argparse.Namespace) -> None:
    """Print the results of the measuring process."""
    plan, facts = results["plan"], results["facts"]
    parts = ("slots", "staging", "non_expert", "kv_cache", "workspace")
    print(
        f"plan: {plan['slots_per_layer']} slots a layer of {format_nbytes(plan['expert_nbytes'])} "
        f"each; {plan['io']} I/O; "
        + ", ".join(f"{part} {format_nbytes(plan[part])}" for part in parts)
    )
    peak = finished.peak_nbytes
    group = "unknown" if peak is None else format_nbytes(peak)
    print(f"memory: budget {format_nbytes(options.budget)}, cap {finished.cap}")
    print(
        f"peak: process {format_nbytes(facts['peak'])} (loaded {format_nbytes(facts['loaded'])}, "
        f"libraries before it {format_nbytes(facts['libraries'])}), control group {group}"
    )
    print(
        f"load: {facts['load_seconds']:.1f} s; a prompt of {options.prompt} tokens "
        f"{facts['prompt_seconds']:.1f} s"
    )
    print(f"\n{options.tokens} tokens, {options.rounds} rounds, {options.threads} threads; medians")
    print(summary(results["rows"], ["stream", "prefetch"]).to_string())


def prepared(options: argparse.Namespace, shape: Shape) -> tuple[Path, bool]:
    """Return a folder with the checkpoint, and whether this run made it."""
    folder = options.folder / f"mixtral-{shape.layers}x{shape.hidden}x{shape.inner}"
    print(f"{shape.num_weights() / 1e9:.1f} billion weights, counted tensor by tensor")
    if folder.exists():
        stored = open_checkpoint(folder).config
        if any(stored.get(name) != value for name, value in shape.config().items()):
            sys.exit(f"{folder}: is of another shape: remove it, or give another folder")
        print(f"checkpoint: {format_nbytes(size_of(folder))} in {folder}, from an earlier run")
        return folder, False
    needed = shape.num_weights() * 3.2 / 8 + 4 * shape.vocab * shape.hidden
    free = shutil.disk_usage(options.folder).free
    if needed > free:
        sys.exit(
            f"needs about {needed / 1e9:.0f} GB in {options.folder}; {free / 1e9:.0f} are free"
        )
    began = time.perf_counter()
    try:
        write_checkpoint(shape, Scheme(), folder)
    except BaseException:
        shutil.rmtree(folder)
        raise
    seconds = time.perf_counter() - began
    print(f"checkpoint: {format_nbytes(size_of(folder))} in {folder}, written in {seconds:.0f} s")
    return folder, True


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def parser() -> argparse.ArgumentParser:
    parser, shape = argparse.ArgumentParser(description=__doc__.splitlines()[0]), Shape()
    add: Callable[..., Any] = parser.add_argument
    for name, value in asdict(shape).items():
        add(f"--{name.replace('_', '-')}", type=int, default=value, help=f"of the model ({value})")
    add("--folder", type=Path, default=Path(), help="where to write")
    add("--keep", action="store_true", help="leave the checkpoint there")
    add("--budget", type=parse_nbytes, default=12 << 30, help="for the plan (12GiB)")
    add("--cap", type=parse_nbytes, help="on the process's memory; the budget by default")
    add("--slots", type=int, help="of a layer, instead of as many as fit the budget")
    add("--policy", default="lru")
    add("--prefetch", type=int, default=2, help="experts guessed for the next layer (2)")
    add(
        "--repeat",
        type=float,
        default=0.25,
        help="share of tokens that repeat the previous one (0.25)",
    )
    add("--prompt", type=int, default=16, help="tokens that are read first (16)")
    add("--tokens", type=int, default=16, help="decoded in each run (16)")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=os.cpu_count(), help="that compute (all cores)")
    add("--kernels", default="auto")
    add("--io", default="direct")
    add("--checkpoint", type=Path, help=argparse.SUPPRESS)  # of the process that measures
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.checkpoint is not None:
        inside(options)
        return
    shape = Shape(**{name: getattr(options, name) for name in asdict(Shape())})
    folder, made = prepared(options, shape)
    try:
        evict(folder)
        words = [sys.executable, __file__, *sys.argv[1:], "--checkpoint", str(folder)]
        finished = run_capped(words, options.cap or options.budget)
        if finished.returncode:
            sys.exit(
                f"the process ended with {finished.returncode}; cap {finished.cap}, "
                f"{finished.kills} killed"
            )
        report(json.loads(finished.output.splitlines()[-1]), finished, options)
    finally:
        if made and not options.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
