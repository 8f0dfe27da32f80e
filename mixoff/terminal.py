"""A chat in a terminal, through a pipe or as JSON lines. Knows replies and text; no models or files.

Whatever others wrote (a model, a checkpoint, the name of a file) passes `printable` first.
"""

import json
import math
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixoff.config import format_nbytes
from mixoff.errors import MixoffError

if TYPE_CHECKING:
    from mixoff.cache import CacheStats, ExpertCache
    from mixoff.generate import Chat, ReplyStats

_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but \t and \n, so every escape sequence's start
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # what reorders text
    r"\ud800-\udfff\U000e0000-\U000e007f]"  # halves of characters; tags, which nobody sees
)
_COMMANDS = {
    "/reset": "forget the conversation",
    "/stats": "hits, misses and hit rate of each layer",
    "/help": "this list",
    "/exit": "leave, as Ctrl-D does",
}


def printable(text: str) -> str:
    """Return the text without the characters that steer a terminal, \\t and \\n excepted.

    Each character is judged by itself, so a stream may be cut anywhere.
    """
    return _UNPRINTABLE.sub("", text)


def one_line(text: object) -> str:
    """Return what an object says as one printable line."""
    return " ".join(printable(str(text)).split())


def progress(text: str) -> AbstractContextManager[object]:
    """Return a context that shows what is being waited for, on stderr if that is a terminal."""
    console = Console(stderr=True)
    return console.status(Text(one_line(text))) if console.is_terminal else nullcontext()


def percent(share: float) -> str:
    """Return a share of 0 to 1 as "82.8 %", and NaN as "unknown"."""
    return "unknown" if math.isnan(share) else f"{100 * share:.1f} %"


def statistics_line(stats: "ReplyStats") -> str:
    """Return what one reply took, in a line."""
    parts = []
    if (cache := stats.cache) is not None:
        parts += [
            f"hits {cache.hits}",
            f"misses {cache.misses}",
            f"hit rate {percent(cache.hit_rate)}",
            f"bytes read {format_nbytes(cache.bytes_moved)}",
        ]
    rate = f"{stats.tokens_per_second:.1f}" if stats.new_tokens > 1 else "unknown"
    parts.append(f"tokens/s {rate}")
    if stats.new_tokens:
        parts.append(f"first token after {stats.seconds_to_first_token:.2f} s")
    if stats.finish != "stop":
        why = "stopped" if stats.finish == "stopped" else "cut"
        parts.append(f"{why} after {stats.new_tokens} tokens")
    return ", ".join(parts)


def statistics_object(stats: "ReplyStats") -> dict[str, Any]:
    """Return what one reply took, as JSON holds it: what is unknown is null."""
    rate = stats.tokens_per_second if stats.new_tokens > 1 else None
    statistics = asdict(stats) | {"tokens_per_second": rate}
    if (cache := stats.cache) is not None:
        rates = [None if math.isnan(rate) else rate for rate in cache.hit_rate_per_layer]
        demanded = cache.hits + cache.misses
        statistics["cache"] |= {
            "hits": cache.hits,
            "misses": cache.misses,
            "hit_rate": cache.hit_rate if demanded else None,
            "hit_rate_per_layer": rates,
        }
    return statistics


def layer_table(stats: "CacheStats") -> Table:
    """Return hits, misses and hit rate of each layer."""
    table = Table("layer", "hits", "misses", "hit rate", title="since the model was loaded")
    for column in table.columns:
        column.justify = "right"
    rows = zip(
        stats.hits_per_layer, stats.misses_per_layer, stats.hit_rate_per_layer, strict=True
    )
    for layer, (hits, misses, rate) in enumerate(rows):
        table.add_row(str(layer), str(hits), str(misses), percent(rate))
    table.add_section()
    table.add_row("all", str(stats.hits), str(stats.misses), percent(stats.hit_rate))
    return table


def answer_text(chat: "Chat", prompt: str) -> None:
    """Print the reply as it comes, then a line of statistics."""
    pieces = chat.send(prompt)
    try:
        _write_pieces(_printable_pieces(pieces))
    finally:
        _write_pieces("\n")
    for line in _last_words(chat):
        _write_pieces([line, "\n"])


def answer_json(chat: "Chat", prompt: str) -> None:
    """Print one line of JSON: prompt, reply, and statistics."""
    reply = "".join(chat.send(prompt))
    statistics = statistics_object(chat.last) if chat.last else None
    answer = json.dumps({"prompt": prompt, "reply": reply, "statistics": statistics})  # all ASCII
    _write_pieces([answer, "\n"])


def turns(lines: Iterable[str]) -> Iterator[str]:
    """Yield each line that says something."""
    yield from (line.strip() for line in lines if line.strip())


class Session:
    """A chat with somebody at a terminal."""

    def __init__(self, chat: "Chat", cache: "ExpertCache", name: str) -> None:
        self._chat = chat
        self._cache = cache
        self._name = name
        self._console = Console(highlight=False)

    def run(self) -> None:
        """Answer until the person leaves: with Ctrl-D, /exit, or Ctrl-C at the prompt."""
        with suppress(ImportError):
            import readline  # noqa: F401 - now input() has arrow keys and a history
        self._say(self._header(), "bold")
        self._say("Ctrl-C stops a reply, Ctrl-D leaves, /help lists commands.")
        try:
            while (line := self._ask()) != "/exit":
                if line.startswith("/"):
                    self._obey(line)
                elif line:
                    self._answer(line)
        except (EOFError, KeyboardInterrupt):
            self._console.print()

    def _ask(self) -> str:
        self._console.print()
        return input("you> ").strip()

    def _header(self) -> str:
        layers = len(self._cache.stats().hits_per_layer)
        return (
            f"{one_line(self._name)}: {layers} layers of {self._cache.num_experts} experts, "
            f"{self._cache.slots_per_layer} of each layer in slots on {self._cache.device}"
        )

    def _obey(self, command: str) -> None:
        if command == "/reset":
            self._chat.reset()
            self._say("The conversation is forgotten.")
        elif command == "/stats":
            self._console.print(layer_table(self._cache.stats()))
        else:
            if command != "/help":
                self._say(f"{one_line(command)}: no such command.")
            for name, meaning in _COMMANDS.items():
                self._say(f"{name:8}{meaning}")

    def _answer(self, prompt: str) -> None:
        try:
            pieces = self._chat.send(prompt)
            with _first_interrupt_calls(self._chat.stop):
                _write_pieces(_printable_pieces(pieces))
        except MixoffError as error:
            self._say(f"\n{one_line(error)}", "red")
            return
        self._console.print()
        for line in _last_words(self._chat):
            self._say(line)

    def _say(self, text: str, style: str = "dim") -> None:
        self._console.print(Text(text, style=style))


@contextmanager
def _first_interrupt_calls(stop: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C call `stop`, and only the next one raise KeyboardInterrupt."""

    def handle(signum: int, frame: object) -> None:
        signal.signal(signal.SIGINT, previous)
        stop()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _printable_pieces(pieces: Iterator[str]) -> Iterator[str]:
    with progress("reading the message"):
        first = next(pieces, "")
    yield printable(first).lstrip()
    yield from map(printable, pieces)


def _last_words(chat: "Chat") -> Iterator[str]:
    if chat.last is not None:
        yield statistics_line(chat.last)
        if chat.last.notice:
            yield one_line(chat.last.notice)


def _write_pieces(pieces: Iterable[str]) -> None:
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
