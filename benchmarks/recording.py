"""The cost of a recording, on the demo model.

Run it from the root of a clone: ``.venv/bin/python benchmarks/recording.py``. The same greedy reply
is decoded with and without ``cache.record()`` in every round; the medians, and that of the ratios
of the same round, are what a user notices. On a busy machine they are mostly noise, so a third kind
of reply times what recording adds while tokens are decoded: building a demand's events and
notifying the recorder of them, and every call of the recorder. Its share of the tokens' time must
stay under 2 %. What a recording does once, at its end, is timed separately.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer

from mixoff import Chat, ExpertCache, OffloadConfig, build_model, demo_path
from mixoff.cache.state import CacheState
from mixoff.trace import Recorder

PROMPT = "Tell me a story about a fox."
BAR = 0.02


class Stopwatch:
    """The total time of all calls of some functions."""

    def __init__(self) -> None:
        self.spent_ns = 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same function, whose calls are timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter_ns()
            try:
                return function(*arguments, **options)
            finally:
                self.spent_ns += time.perf_counter_ns() - began

        return timed


@dataclass(frozen=True)
class Timed:
    """The seconds of a reply and of its recording."""

    reply: float
    recorder: float  # the recorder's own calls
    notifying: float  # demands' events built and passed on, with the recorder's part
    finish: float
    events: int


@contextmanager
def timed_calls(owner: Any, *names: str) -> Iterator[Stopwatch]:
    """Time all calls of some functions of a class or module inside the ``with`` block."""
    watch, functions = Stopwatch(), {name: getattr(owner, name) for name in names}
    for name, function in functions.items():
        setattr(owner, name, watch.timed(function))
    try:
        yield watch
    finally:
        for name, function in functions.items():
            setattr(owner, name, function)


def reply_seconds(chat: Chat) -> float:
    """Return the seconds of a reply."""
    chat.reset()
    began = time.perf_counter()
    for _ in chat.send(PROMPT):
        pass
    return time.perf_counter() - began


def timed_reply(chat: Chat, cache: ExpertCache) -> Timed:
    """Return the times of recording one reply."""
    with (
        timed_calls(Recorder, "demand", "copy", "guess", "snapshot") as recorder,
        timed_calls(Recorder, "finish") as finish,
        timed_calls(CacheState, "_notify_end") as notifying,
    ):
        with cache.record() as trace:
            recorder.spent_ns = 0  # the residents at the start are recorded once, not per token
            reply = reply_seconds(chat)
        seconds = (watch.spent_ns / 1e9 for watch in (recorder, notifying, finish))
        return Timed(reply, *seconds, len(trace.events))


def measure(rounds: int, *, prefetch: int) -> None:
    """Print the cost of recording, with this number of experts prefetched."""
    torch.set_num_threads(1)
    model, cache = build_model(demo_path(), OffloadConfig(prefetch=prefetch))
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=60)
    reply_seconds(chat)
    plain, recorded, timed = [], [], []
    for number in range(rounds):
        for kind in (0, 1, 2) if number % 2 == 0 else (2, 1, 0):
            if kind == 0:
                plain.append(reply_seconds(chat))
            elif kind == 1:
                with cache.record():
                    recorded.append(reply_seconds(chat))
            else:
                timed.append(timed_reply(chat, cache))
    assert chat.last is not None
    tokens = chat.last.new_tokens

    def report(name: str, values: list[float], unit: str = "ms", scale: float = 1e3) -> None:
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"  {name:<44}{middle * scale:9.3f} {unit} [{low * scale:.3f}-{high * scale:.3f}]")

    print(
        f"\nprefetch={prefetch}: {rounds} rounds of a reply of {tokens} tokens, "
        f"load average {os.getloadavg()[0]:.2f}; medians [min-max]"
    )
    report("a reply without recording", plain)
    report("a reply with recording", recorded)
    ratios = [a / b for a, b in zip(recorded, plain, strict=True)]
    report("with / without, of each round", ratios, "", 1)
    shares = [run.recorder / run.reply for run in timed]
    report("the recorder's own calls / the reply", shares, "%", 100)
    notifying = [run.notifying / run.reply for run in timed]
    report("building and passing on demands / the reply", notifying, "%", 100)
    report("once, at the end: the trace is made", [run.finish for run in timed])
    verdict = "under" if max(map(statistics.median, (shares, notifying))) < BAR else "NOT under"
    print(f"  {timed[-1].events} events a reply; the recorder's time is {verdict} {BAR:.0%}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    for prefetch in (0, 2):
        measure(rounds, prefetch=prefetch)
    print(
        "\nThe model computes on the CPU here, so a recorder can't delay a device.\n"
        "With a GPU, its times are read after the recording has ended (Recorder.finish)."
    )


if __name__ == "__main__":
    main()
