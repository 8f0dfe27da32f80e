"""This checkout beside another one: both decode the same tokens, a few at a time, in alternation.

``.venv/bin/python benchmarks/side_by_side.py --other ../before data/demo-mixtral`` prints, for each
checkpoint named, the median milliseconds a token of both checkouts and the ratio of the medians,
this one's over the other's, with the range of ratios of the rounds. Each checkout runs in a process
of its own that has loaded the model already. One waits on a pipe while the other computes, and
their order changes from round to round, so that whatever else the machine does strikes both alike.
Sums of all logits are compared, too: "same" means equal to the bit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

WORKER = """
import json, sys, time
import torch
import mixoff
from transformers.utils import logging

settings = json.loads(sys.argv[1])
logging.disable_progress_bar()
torch.set_num_threads(settings["threads"])
offload = mixoff.OffloadConfig(**settings["offload"])
model, cache = mixoff.build_model(settings["path"], offload)
ids = torch.arange(1, 1 + settings["prompt"] + settings["tokens"])[None] * 7 % 1000

@torch.inference_mode()
def decode():
    prompt = settings["prompt"]
    out = model(ids[:, :prompt], use_cache=True, logits_to_keep=1)
    past, seconds, total = out.past_key_values, [], float(out.logits.double().sum())
    for place in range(prompt, ids.shape[1]):
        began = time.perf_counter()
        out = model(ids[:, place : place + 1], past_key_values=past, use_cache=True)
        seconds.append(time.perf_counter() - began)
        total += float(out.logits.double().sum())
    return {"ms": [1e3 * s for s in seconds], "total": total, "from": mixoff.__file__}

decode()
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(decode()), flush=True)
"""


class Worker:
    """One checkout's process, which decodes when it is asked to."""

    def __init__(self, checkout: Path, settings: dict[str, Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_WAIT_POLICY": "passive"}
        words = [sys.executable, "-c", WORKER, json.dumps(settings)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(
            words, **pipes, text=True, env=environment, cwd=settings["cwd"]
        )
        self._read()

    def _read(self) -> str:
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            raise SystemExit("a worker has ended: see above")
        return line

    def decode(self) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def workers(checkouts: list[Path], settings: dict[str, Any]) -> Iterator[list[Worker]]:
    opened: list[Worker] = []
    try:
        for checkout in checkouts:
            opened.append(Worker(checkout, settings))
        yield opened
    finally:
        for worker in opened:
            worker.close()


def compare(options: argparse.Namespace, path: Path) -> str:
    """Return a row of the table."""
    settings = {
        "path": str(path.resolve()),
        "cwd": str(path.resolve().parent),
        "threads": options.threads,
        "prompt": options.prompt,
        "tokens": options.tokens,
        "offload": {"offload_per_layer": options.offload_per_layer, "prefetch": options.prefetch},
    }
    medians: list[list[float]] = [[], []]
    totals = set()
    with workers([ROOT, options.other.resolve()], settings) as pair:
        for number in range(options.rounds):
            for place in (0, 1) if number % 2 else (1, 0):
                result = pair[place].decode()
                medians[place].append(statistics.median(result["ms"]))
                totals.add(result["total"])
    here, there = map(statistics.median, medians)
    ratios = [first / second for first, second in zip(*medians, strict=True)]
    span = f"{min(ratios):.3f} to {max(ratios):.3f}"
    logits = "same" if len(totals) == 1 else f"differ by {max(totals) - min(totals):.3g}"
    return f"{path.name:24} {here:9.3f} {there:9.3f} {here / there:7.3f} {span:>16}  {logits}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--other", type=Path, required=True, help="another checkout of mixoff")
    parser.add_argument("--offload-per-layer", type=int, default=0)
    parser.add_argument("--prefetch", type=int, default=0)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    print(f"{'ms a token':24} {'this':>9} {'other':>9} {'ratio':>7} {'rounds':>16}  logits")
    for path in options.checkpoints:
        print(compare(options, path), flush=True)


if __name__ == "__main__":
    main()
