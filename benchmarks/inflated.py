"""Offloading with the demo model's own routing and experts of tens of megabytes: bytes and speed.

Run it from the root of a clone, on an otherwise idle machine:
``.venv/bin/python benchmarks/inflated.py``. It writes 1.6 GB into ``--folder`` (25 MB an expert)
and deletes them at the end.

`mixoff.convert.inflate_checkpoint` appends weights to the demo model's experts whose products are
multiplied by zero: routing, logits and text stay the demo model's, which is checked for every
reply, while the bytes and the work of an expert grow. These experts are float32, which torch
multiplies under any kernels; kernels differ in attention alone, and in the demo model as it is.

The arms decode replies of ``--tokens`` tokens to ``--message``, greedily: with no cache (each
expert is read when it is needed, and freed), with LRU at several numbers of slots, with prefetch
for the next layer, with the other policies, and with all experts in memory. The process runs in a
control group whose memory is capped where one can be made, page cache included, and reads with
direct I/O. Every round runs all arms, each with a cache that begins empty and reads the prompt
first; printed are medians over the rounds, with the least and most tokens a second.

Columns are those of `benchmarks/whole_mixtral.py`. The second table is the demo model as it is,
with half of its experts outside, whose records of 86 KB take next to no time to read, with both
kernels.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from decoding import Run, guess, status, summary
from memory_cap import Finished, evict, run_capped
from transformers import AutoTokenizer
from transformers.utils import logging

from mixoff import OffloadConfig, demo_path
from mixoff.convert import inflate_checkpoint
from mixoff.policies.registry import LIVE_POLICIES
from mixoff.units import format_nbytes, parse_nbytes

EXPERTS = 8


@dataclass(frozen=True)
class Arm:
    """A cache's settings, and the kernels."""

    policy: str
    slots: int
    prefetch: int = 0
    kernels: str = "cpu"

    def __str__(self) -> str:
        if self.slots in (0, EXPERTS):
            name = "no cache" if self.slots == 0 else "all in memory"
        else:
            name = f"{self.policy} {self.slots}"
        return name + (f", {self.prefetch} guessed" if self.prefetch else "")


def arms(options: argparse.Namespace) -> list[Arm]:
    """Return LRU of all sizes, then other policies and torch's kernels at the middle size."""
    middle, guesses = options.slots[len(options.slots) // 2], options.prefetch
    listed = [Arm("lru", slots) for slots in (0, *options.slots, EXPERTS)]
    listed += [Arm("lru", slots, guesses) for slots in options.slots]
    listed += [Arm(policy, middle) for policy in options.policies if policy != "lru"]
    return listed + [Arm("lru", slots, kernels="torch") for slots in (0, middle)]


def prompt_of(options: argparse.Namespace) -> list[int]:
    """Return the message's token ids in the chat template."""
    messages = [{"role": "user", "content": options.message}]
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def demo_rows(options: argparse.Namespace) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the demo model's reply with torch's kernels, and the measurements of its replies."""
    runs = {name: Run(demo_path(), OffloadConfig(), name) for name in ("torch", "cpu")}
    replies, rows = {}, []
    for number in range(-1, options.rounds):  # the first round warms up
        for name, run in runs.items():
            run.empty(EXPERTS // 2)
            replies[name], measured = run.greedy(prompt_of(options), options.tokens)
            if number >= 0:
                same = replies[name] == replies["torch"]
                rows.append({"kernels": name, "same text": same, **measured})
    for run in runs.values():
        run.cache.close()
    return replies["torch"], rows


def inflated_rows(options: argparse.Namespace, expected: list[int]) -> list[dict[str, Any]]:
    """Return the measurements of the inflated model's replies, for each arm."""
    rows, runs = [], {}
    for _ in range(options.rounds):
        for arm in arms(options):
            key = (arm.policy, arm.kernels)
            if key not in runs:
                offload = OffloadConfig(offload_per_layer=EXPERTS, policy=arm.policy, io="direct")
                runs[key] = Run(options.checkpoint, offload, arm.kernels)
                runs[key].verify()
            run = runs[key]
            run.empty(arm.slots)
            guess(run, arm.prefetch)
            reply, measured = run.greedy(prompt_of(options), options.tokens)
            run.empty(0)  # frees memory for the other arms
            same = reply == expected
            rows.append(
                {"kernels": arm.kernels, "setting": str(arm), "same text": same, **measured}
            )
    return rows


def inside(options: argparse.Namespace) -> None:
    """Measure, in a process with capped memory, and print JSON."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(options.threads)
    expected, demo = demo_rows(options)
    inflated = inflated_rows(options, expected)
    text = AutoTokenizer.from_pretrained(demo_path()).decode(expected)
    results = {"demo": demo, "inflated": inflated, "text": text, "peak": status("VmHWM")}
    print(json.dumps(results))


def report(results: dict[str, Any], finished: Finished, options: argparse.Namespace) -> None:
    peak = finished.peak_nbytes
    group = "unknown" if peak is None else format_nbytes(peak)
    process = format_nbytes(results["peak"])
    print(f"memory: cap {finished.cap}; peak: process {process}, group {group}")
    print(f"text: {results['text']!r}")
    different = [row for row in results["inflated"] if not row["same text"]]
    print(f"{len(results['inflated'])} replies, {len(different)} with another text")
    print(f"\ninflated; {options.rounds} rounds, {options.threads} threads; medians")
    print(summary(results["inflated"], ["kernels", "setting"]).T.to_string())
    print("\nthe demo model as it is")
    print(summary(results["demo"], ["kernels"]).T.to_string())


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write")
    parser.add_argument("--inner", type=int, default=8192, help="rows of gate and up (8192)")
    parser.add_argument("--cap", type=parse_nbytes, default=5 << 29, help="of memory (2.5GiB)")
    parser.add_argument("--message", default="Tell me a story about a fox.")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--slots", type=int, nargs="*", default=[2, 4, 6])
    parser.add_argument("--policies", nargs="*", default=[*LIVE_POLICIES])
    parser.add_argument("--prefetch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="that compute")
    parser.add_argument(
        "--checkpoint", type=Path, help=argparse.SUPPRESS
    )  # of the measuring process
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.checkpoint is not None:
        inside(options)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary) / "heavy"
        inflate_checkpoint(demo_path(), folder, intermediate_size=options.inner)
        print(f"an expert: {format_nbytes(12 * 256 * options.inner)}, 64 of them")
        evict(folder)
        words = [sys.executable, __file__, *sys.argv[1:], "--checkpoint", str(folder)]
        finished = run_capped(words, options.cap)
        if finished.returncode:
            kills = f"{finished.kills} killed for memory"
            sys.exit(f"the process ended with {finished.returncode}; cap {finished.cap}, {kills}")
        report(json.loads(finished.output.splitlines()[-1]), finished, options)


if __name__ == "__main__":
    main()
