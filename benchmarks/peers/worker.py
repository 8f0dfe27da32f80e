"""What a worker does with a model, the same for each peer. Knows its process; no library.

A worker is started as ``python WORKER.py SETTINGS``, settings in JSON. One that decodes loads a
model, reads a prompt if there is one, decodes given tokens, prints a line of JSON and ends. One
that takes turns prints a line when it is ready, then one for each line that it is sent.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

WARM_UP = 2  # tokens that aren't timed


class Session(Protocol):
    """A loaded model that keeps what it read."""

    def read(self, ids: list[int]) -> int:
        """Read tokens after those before them, and return the token that is most probable next."""

    def reset(self) -> None:
        """Forget all tokens."""

    def told(self) -> dict[str, Any]:
        """Return what else there is to tell."""


def status_kb(name: str) -> int:
    """Return a number of /proc/self/status."""
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


def read_nbytes() -> int:
    """Return how many bytes this process had fetched from disks."""
    with Path("/proc/self/io").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith("read_bytes:"))


def tell(**found: Any) -> None:
    """Print a line of JSON for the parent, past what libraries print."""
    os.write(_OUT, json.dumps(found).encode() + b"\n")


def settings() -> dict[str, Any]:
    return json.loads(sys.argv[1])


def decode(load: Callable[[dict[str, Any]], Session]) -> None:
    """Load, read a prompt, decode, and tell times, bytes and tokens."""
    given = settings()
    ids, prompt, tokens = given["ids"], given["prompt"], given["tokens"]
    began = time.perf_counter()
    session = load(given)
    found: dict[str, Any] = {"load_s": time.perf_counter() - began, "load_nbytes": read_nbytes()}
    found["load_peak_kb"] = status_kb("VmHWM")
    if prompt:
        session.read(ids[:prompt])  # the first one makes buffers, and compiles
        session.reset()
        began = time.perf_counter()
        session.read(ids[:prompt])
        found["prefill_s"] = time.perf_counter() - began
    later = ids[prompt : prompt + WARM_UP + tokens]
    for token in later[:WARM_UP]:
        session.read([token])
    session.told()
    before, began, times, best = read_nbytes(), time.perf_counter(), [], []
    for token in later[WARM_UP:]:
        best.append(session.read([token]))
        times.append(time.perf_counter() - began)
    found["decode_s"] = times[-1]
    found["token_s"] = [after - last for last, after in zip([0.0, *times], times, strict=False)]
    found["nbytes"] = read_nbytes() - before
    tell(**found, best=best, peak_kb=status_kb("VmHWM"), **session.told())


def take_turns(run: Callable[[int], float], **told: Any) -> None:
    """Say that all is ready, then run some numbers for each line that comes; tell the seconds."""
    tell(**told)
    for line in sys.stdin:
        first, count = map(int, line.split())
        tell(seconds=[run(number) for number in range(first, first + count)])


_OUT = os.dup(1)
os.dup2(2, 1)  # what libraries print goes to the other stream
