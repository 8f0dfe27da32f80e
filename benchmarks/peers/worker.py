"""A worker process of a peer: decodes, or runs an expert on request. Knows no peer's library.

A worker is started as ``python WORKER.py SETTINGS``, with settings in JSON. `decode` loads a model,
reads a prompt if there is one, decodes given tokens, prints a line of JSON and ends. `serve` prints
a line when it is ready, and then one for each line that it reads.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

WARM_UP = 2  # tokens that are not timed


class Session(Protocol):
    """A loaded model and its KV cache."""

    def read(self, ids: list[int]) -> int:
        """Append tokens to the context, and return the most probable next token."""

    def reset(self) -> None:
        """Empty the context."""

    def facts(self) -> dict[str, Any]:
        """Return further measurements of this peer, by name."""


def status_kb(name: str) -> int:
    """Return a number of KiB in /proc/self/status."""
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


def read_nbytes() -> int:
    """Return the bytes that were read from disks for this process."""
    with Path("/proc/self/io").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith("read_bytes:"))


def send(**results: Any) -> None:
    """Print a line of JSON for the parent process, on a stream that libraries don't write to."""
    os.write(_OUT, json.dumps(results).encode() + b"\n")


def read_settings() -> dict[str, Any]:
    return json.loads(sys.argv[1])


def decode(load: Callable[[dict[str, Any]], Session]) -> None:
    """Load a model, read a prompt, decode, and send times, bytes and tokens."""
    settings = read_settings()
    ids, prompt, tokens = settings["ids"], settings["prompt"], settings["tokens"]
    began = time.perf_counter()
    session = load(settings)
    results: dict[str, Any] = {"load_s": time.perf_counter() - began, "load_nbytes": read_nbytes()}
    results["load_peak_kb"] = status_kb("VmHWM")
    if prompt:
        session.read(ids[:prompt])  # the first call allocates buffers and compiles
        session.reset()
        began = time.perf_counter()
        session.read(ids[:prompt])
        results["prefill_s"] = time.perf_counter() - began
    later = ids[prompt : prompt + WARM_UP + tokens]
    for token in later[:WARM_UP]:
        session.read([token])
    session.facts()
    before, began, times, best = read_nbytes(), time.perf_counter(), [], []
    for token in later[WARM_UP:]:
        best.append(session.read([token]))
        times.append(time.perf_counter() - began)
    results["decode_s"] = times[-1]
    results["token_s"] = [after - last for last, after in zip([0.0, *times], times, strict=False)]
    results["nbytes"] = read_nbytes() - before
    send(**results, best=best, peak_kb=status_kb("VmHWM"), **session.facts())


def serve(run: Callable[[int], float], **facts: Any) -> None:
    """Send facts once everything is ready; then run the numbers of each line, and send seconds."""
    send(**facts)
    for line in sys.stdin:
        first, count = map(int, line.split())
        send(seconds=[run(number) for number in range(first, first + count)])


_OUT = os.dup(1)
os.dup2(2, 1)  # libraries that print to stdout write to stderr from here on
