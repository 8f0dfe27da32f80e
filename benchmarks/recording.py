"""What a recording costs, on the demo model.

Run it from the root of a clone: ``.venv/bin/python benchmarks/recording.py``. The same greedy reply
is made with and without ``cache.record()``, in turns; the medians, and that of the ratios of
neighbours, tell what a user feels. On a busy machine that is mostly noise, so a
third kind of turn times what recording adds while tokens are made: putting a demand's events
together and telling them to the recorder, and every call of the recorder. Its share of the tokens'
time must stay under 2 %. What a recording does once, at its start and end, is timed apart.
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
from mixoff.cache.observers import snapshot_of
from mixoff.trace import Recorder

PROMPT = "Tell me a story about a fox."
BAR = 0.02


class Stopwatch:
    """How long calls took in all."""

    def __init__(self) -> None:
        self.spent_ns = 0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same call, watched."""

        def watched(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter_ns()
            try:
                return call(*arguments, **options)
            finally:
                self.spent_ns += time.perf_counter_ns() - began

        return watched


@dataclass(frozen=True)
class Timed:
    """What a reply's recording took, in seconds."""

    reply: float
    recorder: float  # the recorder's own calls
    telling: float  # demands' events put together and told, the recorder's part included
    finish: float
    calls: int


@contextmanager
def watched_recorder(cache: ExpertCache) -> Iterator[tuple[Recorder, Stopwatch, Stopwatch]]:
    """Record with a recorder whose calls are timed, as `ExpertCache.record` does without."""
    recorder, own, telling = Recorder(), Stopwatch(), Stopwatch()
    for layer in range(cache.num_layers):
        recorder.snapshot(snapshot_of(layer, cache._state.residency[layer], "start"))
    for name in ("demand", "copy", "guess", "snapshot"):
        setattr(recorder, name, own.timed(getattr(recorder, name)))
    cache._state._notify_end = telling.timed(cache._state._notify_end)
    cache._observers.attach(recorder)
    try:
        yield recorder, own, telling
    finally:
        cache._observers.detach(recorder)
        del cache._state._notify_end  # the class's own again


def reply_seconds(chat: Chat) -> float:
    """Return how long a reply takes."""
    chat.reset()
    began = time.perf_counter()
    for _ in chat.send(PROMPT):
        pass
    return time.perf_counter() - began


def timed_reply(chat: Chat, cache: ExpertCache) -> Timed:
    """Return what recording one reply took."""
    with watched_recorder(cache) as (recorder, own, telling):
        reply = reply_seconds(chat)
    began = time.perf_counter()
    trace = recorder.finish(provenance=cache._provenance())
    finish = time.perf_counter() - began
    return Timed(reply, own.spent_ns / 1e9, telling.spent_ns / 1e9, finish, len(trace.events))


def measure(rounds: int, *, prefetch: int) -> None:
    """Print what recording costs, with so many experts prefetched."""
    torch.set_num_threads(1)
    model, cache = build_model(demo_path(), OffloadConfig(prefetch=prefetch))
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=60)
    reply_seconds(chat)
    plain, recorded, timed = [], [], []
    for turn in range(rounds):
        for kind in (0, 1, 2) if turn % 2 == 0 else (2, 1, 0):
            if kind == 0:
                plain.append(reply_seconds(chat))
            elif kind == 1:
                with cache.record():
                    recorded.append(reply_seconds(chat))
            else:
                timed.append(timed_reply(chat, cache))
    assert chat.last is not None
    tokens = chat.last.new_tokens

    def told(name: str, values: list[float], unit: str = "ms", scale: float = 1e3) -> None:
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"  {name:<44}{middle * scale:9.3f} {unit} [{low * scale:.3f}-{high * scale:.3f}]")

    print(
        f"\nprefetch={prefetch}: {rounds} rounds of a reply of {tokens} tokens, "
        f"load average {os.getloadavg()[0]:.2f}; medians [min-max]"
    )
    told("a reply without recording", plain)
    told("a reply with recording", recorded)
    ratios = [a / b for a, b in zip(recorded, plain, strict=True)]
    told("with / without, of each round", ratios, "", 1)
    shares = [run.recorder / run.reply for run in timed]
    told("the recorder's own calls / the reply", shares, "%", 100)
    telling = [run.telling / run.reply for run in timed]
    told("demands told, with their making / the reply", telling, "%", 100)
    told("once, at the end: the trace is made", [run.finish for run in timed])
    verdict = "under" if max(map(statistics.median, (shares, telling))) < BAR else "NOT under"
    print(f"  {timed[-1].calls} events a reply; the recorder's time is {verdict} {BAR:.0%}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    for prefetch in (0, 2):
        measure(rounds, prefetch=prefetch)
    print(
        "\nThe model computes on the CPU here, so there is no device that a recorder could make "
        "wait.\nWith one, its times are asked for when the recording has ended (Recorder.finish)."
    )


if __name__ == "__main__":
    main()
