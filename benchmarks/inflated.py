"""Offloading with the demo model's own routing and experts of tens of megabytes: bytes and speed.

Run it from the root of a clone, on a machine that does nothing else:
``.venv/bin/python benchmarks/inflated.py``. It writes 1.6 GB into ``--folder`` (25 MB an expert)
and deletes them at the end.

`mixoff.convert.inflate_checkpoint` appends weights to the demo model's experts whose products are
multiplied by nothing: routing, logits and text stay the demo model's, which is checked of every
reply, while bytes and work of an expert grow. Experts are float32 then, which torch multiplies
whichever kernels are chosen; kernels differ in attention alone, and in the demo model as it is.

Replies to ``--message`` of ``--tokens`` tokens are made, always the likeliest token, with no cache
(each expert is read when it is needed, and let go), with LRU at several numbers of slots, with
guesses of the next layer's experts, with the other policies, and with all in memory. The process
runs in a control group whose memory is capped where one can be made, page cache included, and reads
with direct I/O. Settings take turns, round by round, each with a cache that begins empty and sees
the prompt first; medians of the rounds are printed, with the least and most tokens a second.

Columns are those of `benchmarks/whole_mixtral.py`. Then follows the demo model as it is, with half
of its experts outside, whose records of 86 KB cost next to nothing to read: its kernels side by
side, in turns, too.
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
from memory_cap import evict, run_capped
from transformers import AutoTokenizer
from transformers.utils import logging

from mixoff import OffloadConfig, demo_path
from mixoff.convert import inflate_checkpoint
from mixoff.policies.registry import LIVE_POLICIES
from mixoff.units import format_nbytes, parse_nbytes

EXPERTS = 8


@dataclass(frozen=True)
class Arm:
    """A way to serve experts."""

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


def arms(given: argparse.Namespace) -> list[Arm]:
    """Return all ways: LRU of all sizes, then others and torch's kernels at the middle one."""
    middle, guesses = given.slots[len(given.slots) // 2], given.prefetch
    found = [Arm("lru", slots) for slots in (0, *given.slots, EXPERTS)]
    found += [Arm("lru", slots, guesses) for slots in given.slots]
    found += [Arm(policy, middle) for policy in given.policies if policy != "lru"]
    return found + [Arm("lru", slots, kernels="torch") for slots in (0, middle)]


def prompt_of(given: argparse.Namespace) -> list[int]:
    """Return the message as ids, as a chat has them."""
    turns = [{"role": "user", "content": given.message}]
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def demo_rows(given: argparse.Namespace) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the demo model's reply with torch's kernels, and what its replies took."""
    runs = {name: Run(demo_path(), OffloadConfig(), name) for name in ("torch", "cpu")}
    replies, rows = {}, []
    for turn in range(-1, given.rounds):  # the first one warms up
        for name, run in runs.items():
            run.empty(EXPERTS // 2)
            replies[name], told = run.greedy(prompt_of(given), given.tokens)
            if turn >= 0:
                same = replies[name] == replies["torch"]
                rows.append({"kernels": name, "same text": same, **told})
    for run in runs.values():
        run.cache.close()
    return replies["torch"], rows


def inflated_rows(given: argparse.Namespace, expected: list[int]) -> list[dict[str, Any]]:
    """Return what the inflated model's replies took, in each way."""
    rows, runs = [], {}
    for _ in range(given.rounds):
        for arm in arms(given):
            which = (arm.policy, arm.kernels)
            if which not in runs:
                offload = OffloadConfig(offload_per_layer=EXPERTS, policy=arm.policy, io="direct")
                runs[which] = Run(given.checkpoint, offload, arm.kernels)
                runs[which].verify()
            run = runs[which]
            run.empty(arm.slots)
            guess(run, arm.prefetch)
            reply, told = run.greedy(prompt_of(given), given.tokens)
            run.empty(0)  # others need the memory
            same = reply == expected
            rows.append({"kernels": arm.kernels, "way": str(arm), "same text": same, **told})
    return rows


def inside(given: argparse.Namespace) -> None:
    """Measure, in a process of its own; print JSON."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(given.threads)
    expected, demo = demo_rows(given)
    inflated = inflated_rows(given, expected)
    text = AutoTokenizer.from_pretrained(demo_path()).decode(expected)
    found = {"demo": demo, "inflated": inflated, "text": text, "peak": status("VmHWM")}
    print(json.dumps(found))


def report(found: dict[str, Any], told: Any, given: argparse.Namespace) -> None:
    group = "unknown" if told.peak_nbytes is None else format_nbytes(told.peak_nbytes)
    print(f"memory: cap {told.cap}; peak: process {format_nbytes(found['peak'])}, group {group}")
    print(f"text: {found['text']!r}")
    different = [row for row in found["inflated"] if not row["same text"]]
    print(f"{len(found['inflated'])} replies, {len(different)} with another text")
    print(f"\ninflated; {given.rounds} rounds, {given.threads} threads; medians")
    print(summary(found["inflated"], ["kernels", "way"]).T.to_string())
    print("\nthe demo model as it is")
    print(summary(found["demo"], ["kernels"]).T.to_string())


def options() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("--folder", type=Path, default=Path(), help="where to write")
    found.add_argument("--inner", type=int, default=8192, help="rows of gate and up (8192)")
    found.add_argument("--cap", type=parse_nbytes, default=5 << 29, help="of memory (2.5GiB)")
    found.add_argument("--message", default="Tell me a story about a fox.")
    found.add_argument("--tokens", type=int, default=24)
    found.add_argument("--slots", type=int, nargs="*", default=[2, 4, 6])
    found.add_argument("--policies", nargs="*", default=[*LIVE_POLICIES])
    found.add_argument("--prefetch", type=int, default=2)
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--threads", type=int, default=os.cpu_count(), help="that compute")
    found.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)  # it measures then
    return found


def main() -> None:
    given = options().parse_args()
    if given.checkpoint is not None:
        inside(given)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        folder = Path(place) / "heavy"
        inflate_checkpoint(demo_path(), folder, intermediate_size=given.inner)
        print(f"an expert: {format_nbytes(12 * 256 * given.inner)}, 64 of them")
        evict(folder)
        words = [sys.executable, __file__, *sys.argv[1:], "--checkpoint", str(folder)]
        told = run_capped(words, given.cap)
        if told.returncode:
            kills = f"{told.kills} killed for memory"
            sys.exit(f"the process ended with {told.returncode}; cap {told.cap}, {kills}")
        report(json.loads(told.output.splitlines()[-1]), told, given)


if __name__ == "__main__":
    main()
