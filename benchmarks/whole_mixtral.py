"""The whole of Mixtral-8x7B's shape, of random weights, decoded within a budget of memory.

Run it from the root of a clone, on a machine that does nothing else:
``.venv/bin/python benchmarks/whole_mixtral.py --folder FOLDER``. It writes 18 GB into the folder,
once (two minutes; ``--keep`` leaves them there for the next run), and takes 12 GiB of memory.

The checkpoint has attention at 4 bits in groups of 64, experts at 2 bits in groups of 16 with 8-bit
scales, and mixoff's own files with checksums; `benchmarks/synthetic.py` tells what is random in it.
Another process loads it with `mixoff.build_model`, in a control group whose memory is capped at the
budget where one can be made, page cache included, and decodes. Experts are read from disk with
direct I/O; as many slots as the plan finds room for in the budget keep some, by LRU.

Time doesn't depend on what weights are, but on which experts tokens choose, which is what random
weights can't tell of. So tokens are given, not chosen, in two streams. *random*: each token is
drawn anew, and routing is almost independent of the token before: about slots / experts are hits,
and there is nothing that a cache could make use of. *repeating*: a token is the one before with a
probability of ``--repeat``, and then chooses mostly what that one chose. *alike* is the share of a
token's experts that the token before had chosen, too; `benchmarks/inflated.py` tells it, and the
hit rate, of a trained model's routing. Guesses of the next layer's experts are easier the less a
layer changes the hidden states; *guessed* is the share of misses that were fetched ahead.

Arms take turns, round by round: each stream with and without prefetch. *MB* are those that the
cache moved, guesses that came for nothing too; *MB_read* all that the process had read, as the
system counts. Where a token's time goes: what experts take, attention, the head and waiting for
experts, and the rest, which is Python's and torch's own, with routers, norms and guesses.
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
from memory_cap import evict, run_capped
from synthetic import Shape, write_checkpoint
from transformers.utils import logging

from mixoff import OffloadConfig, Scheme, plan_memory
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.units import format_nbytes, parse_nbytes


def stream(length: int, vocab: int, repeat: float, seed: int) -> list[int]:
    """Return random tokens, each the one before with a probability."""
    chance, tokens = random.Random(seed), [0]
    for _ in range(length):
        again = chance.random() < repeat
        tokens.append(tokens[-1] if again else chance.randrange(vocab))
    return tokens[1:]


def inside(given: argparse.Namespace) -> None:
    """Load the checkpoint and decode, in a process of its own; print JSON."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(given.threads)
    settings: dict[str, Any] = {"io": given.io, "policy": given.policy}
    if given.slots is None:
        settings["device_memory"] = given.budget
    else:
        settings["offload_per_layer"] = given.experts - given.slots
    offload = OffloadConfig(**settings)
    plan = asdict(plan_memory(open_checkpoint(given.checkpoint), offload))
    libraries = status("VmRSS")
    run = Run(given.checkpoint, offload, given.kernels)
    facts = {"load_seconds": run.load_seconds, "libraries": libraries, "loaded": status("VmHWM")}
    began = time.perf_counter()
    run.read(stream(given.prompt, given.vocab, 0, seed=-1))
    facts["prompt_seconds"] = time.perf_counter() - began
    rows = []
    for turn in range(given.rounds):
        for name, repeat in (("random", 0.0), ("repeating", given.repeat)):
            tokens = stream(WARM_UP + given.tokens, given.vocab, repeat, seed=turn)
            for guesses in dict.fromkeys((0, given.prefetch)):
                guess(run, guesses)
                rows.append({"stream": name, "prefetch": guesses, **run.forced(tokens)})
    facts["peak"] = status("VmHWM")
    print(json.dumps({"plan": plan, "facts": facts, "rows": rows}))


def report(found: dict[str, Any], told: Any, given: argparse.Namespace) -> None:
    """Print what the other process measured."""
    plan, facts = found["plan"], found["facts"]
    parts = ("slots", "staging", "non_expert", "kv_cache", "workspace")
    print(
        f"plan: {plan['slots_per_layer']} slots a layer of {format_nbytes(plan['expert_nbytes'])} "
        f"each; {plan['io']} I/O; "
        + ", ".join(f"{part} {format_nbytes(plan[part])}" for part in parts)
    )
    group = "unknown" if told.peak_nbytes is None else format_nbytes(told.peak_nbytes)
    print(f"memory: budget {format_nbytes(given.budget)}, cap {told.cap}")
    print(
        f"peak: process {format_nbytes(facts['peak'])} (loaded {format_nbytes(facts['loaded'])}, "
        f"libraries before it {format_nbytes(facts['libraries'])}), control group {group}"
    )
    print(
        f"load: {facts['load_seconds']:.1f} s; a prompt of {given.prompt} tokens "
        f"{facts['prompt_seconds']:.1f} s"
    )
    print(f"\n{given.tokens} tokens, {given.rounds} rounds, {given.threads} threads; medians")
    print(summary(found["rows"], ["stream", "prefetch"]).to_string())


def prepared(given: argparse.Namespace, shape: Shape) -> tuple[Path, bool]:
    """Return a folder with the checkpoint, and whether it was made now."""
    folder = given.folder / f"mixtral-{shape.layers}x{shape.hidden}x{shape.inner}"
    print(f"{shape.num_weights() / 1e9:.1f} billion weights, counted tensor by tensor")
    if folder.exists():
        stored = open_checkpoint(folder).config
        if any(stored.get(name) != value for name, value in shape.config().items()):
            sys.exit(f"{folder}: is of another shape: remove it, or give another folder")
        print(f"checkpoint: {format_nbytes(size_of(folder))} in {folder}, from an earlier run")
        return folder, False
    needed = shape.num_weights() * 3.2 / 8 + 4 * shape.vocab * shape.hidden
    free = shutil.disk_usage(given.folder).free
    if needed > free:
        sys.exit(f"needs about {needed / 1e9:.0f} GB in {given.folder}; {free / 1e9:.0f} are free")
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


def options() -> argparse.ArgumentParser:
    found, shape = argparse.ArgumentParser(description=__doc__.splitlines()[0]), Shape()
    add: Callable[..., Any] = found.add_argument
    for name, value in asdict(shape).items():
        add(f"--{name.replace('_', '-')}", type=int, default=value, help=f"of the model ({value})")
    add("--folder", type=Path, default=Path(), help="where to write")
    add("--keep", action="store_true", help="leave the checkpoint there")
    add("--budget", type=parse_nbytes, default=12 << 30, help="for the plan (12GiB)")
    add("--cap", type=parse_nbytes, help="on the process's memory; the budget by default")
    add("--slots", type=int, help="of a layer, instead of as many as fit the budget")
    add("--policy", default="lru")
    add("--prefetch", type=int, default=2, help="experts guessed for the next layer (2)")
    add("--repeat", type=float, default=0.25, help="share of tokens that come again (0.25)")
    add("--prompt", type=int, default=16, help="tokens that are read first (16)")
    add("--tokens", type=int, default=16, help="decoded in each turn (16)")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=os.cpu_count(), help="that compute (all cores)")
    add("--kernels", default="auto")
    add("--io", default="direct")
    add("--checkpoint", type=Path, help=argparse.SUPPRESS)  # of the process that measures
    return found


def main() -> None:
    given = options().parse_args()
    if given.checkpoint is not None:
        inside(given)
        return
    shape = Shape(**{name: getattr(given, name) for name in asdict(Shape())})
    folder, made = prepared(given, shape)
    try:
        evict(folder)
        words = [sys.executable, __file__, *sys.argv[1:], "--checkpoint", str(folder)]
        told = run_capped(words, given.cap or given.budget)
        if told.returncode:
            sys.exit(
                f"the process ended with {told.returncode}; cap {told.cap}, {told.kills} killed"
            )
        report(json.loads(told.output.splitlines()[-1]), told, given)
    finally:
        if made and not given.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
