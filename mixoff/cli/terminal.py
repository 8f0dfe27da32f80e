"""A chat at a terminal, through a pipe or as lines of JSON. Knows replies and text; no models."""

import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from mixoff.cli.printable import one_line, printable
from mixoff.cli.report import layer_table, statistics_line, statistics_object
from mixoff.errors import MixoffError

if TYPE_CHECKING:
    from mixoff.chat.chat import Chat

_COMMANDS = {
    "/reset": "forget the conversation",
    "/stats": "hits, misses and hit rate of each layer",
    "/help": "this list",
    "/exit": "end the chat, as Ctrl-D does",
}


def progress(text: str) -> AbstractContextManager[object]:
    """Return a context that shows a text while it waits, on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext()
    return Console(stderr=True).status(Text(one_line(text)))


def answer_text(chat: "Chat", prompt: str) -> None:
    """Print the reply as it streams, then a line of statistics."""
    pieces = chat.send(prompt)
    try:
        _write_pieces(_printable_pieces(pieces))
    finally:
        _write_pieces("\n")
    for line in _closing_lines(chat):
        _write_pieces([line, "\n"])


def answer_json(chat: "Chat", prompt: str) -> None:
    """Print one line of JSON: prompt, reply, and statistics."""
    reply = "".join(chat.send(prompt))
    statistics = statistics_object(chat.last) if chat.last else None
    answer = json.dumps({"prompt": prompt, "reply": reply, "statistics": statistics})  # all ASCII
    _write_pieces([answer, "\n"])


def prompts(lines: Iterable[str]) -> Iterator[str]:
    """Yield each line that isn't blank."""
    yield from (line.strip() for line in lines if line.strip())


class Session:
    """A chat with a person at a terminal."""

    def __init__(self, chat: "Chat", name: str) -> None:
        assert chat.cache is not None
        self._chat, self._cache = chat, chat.cache
        self._name = name
        self._console = Console(highlight=False)

    def run(self) -> None:
        """Answer until the person ends the chat: with Ctrl-D, /exit, or Ctrl-C at the prompt."""
        with suppress(ImportError):
            import readline  # noqa: F401 - gives input() arrow keys and a history
        self._print(self._header(), "bold")
        self._print("Ctrl-C stops a reply, Ctrl-D ends the chat, /help lists commands.")
        try:
            while (line := self._read_line()) != "/exit":
                if line.startswith("/"):
                    self._run_command(line)
                elif line:
                    self._answer(line)
        except (EOFError, KeyboardInterrupt):
            self._console.print()

    def _read_line(self) -> str:
        self._console.print()
        return input("you> ").strip()

    def _header(self) -> str:
        layers = len(self._cache.stats().hits_per_layer)
        return (
            f"{one_line(self._name)}: {layers} layers of {self._cache.num_experts} experts, "
            f"{self._cache.slots_per_layer} of each layer in slots on {self._cache.device}"
        )

    def _run_command(self, command: str) -> None:
        if command == "/reset":
            self._chat.reset()
            self._print("The conversation is forgotten.")
        elif command == "/stats":
            self._console.print(layer_table(self._cache.stats()))
        else:
            if command != "/help":
                self._print(f"{one_line(command)}: no such command.")
            for name, meaning in _COMMANDS.items():
                self._print(f"{name:8}{meaning}")

    def _answer(self, prompt: str) -> None:
        try:
            pieces = self._chat.send(prompt)
            with _first_interrupt_calls(self._chat.stop):
                _write_pieces(_printable_pieces(pieces))
        except MixoffError as error:
            self._print(f"\n{one_line(error)}", "red")
            return
        self._console.print()
        for line in _closing_lines(self._chat):
            self._print(line)

    def _print(self, text: str, style: str = "dim") -> None:
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


def _closing_lines(chat: "Chat") -> Iterator[str]:
    if chat.last is not None:
        yield statistics_line(chat.last)
        if chat.last.notice:
            yield one_line(chat.last.notice)


def _write_pieces(pieces: Iterable[str]) -> None:
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
