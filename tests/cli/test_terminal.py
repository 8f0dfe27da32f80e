"""A chat at a terminal answers lines, runs commands and survives interrupts and errors."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mixoff.cache.stats import CacheStats
from mixoff.chat.reply import ReplyStats
from mixoff.cli.terminal import Session
from mixoff.errors import ConfigError, MixoffError


class FakeCache:
    """A cache with counts."""

    num_experts, slots_per_layer, device = 4, 2, "cpu"

    def stats(self) -> CacheStats:
        return CacheStats((3, 0), (1, 4), 5000)


class FakeChat:
    """A chat whose replies are given pieces, errors or interrupts, until it is stopped."""

    def __init__(self, *pieces: str | Exception | int) -> None:
        self.pieces = pieces
        self.sent: list[str] = []
        self.resets = 0
        self.stopped = False
        self.last = ReplyStats(5, 5, 3, 1.0, 0.5, "stop", FakeCache().stats(), 0, None)

    def send(self, text: str) -> Iterator[str]:
        self.sent.append(text)
        self.stopped = False
        for piece in self.pieces:
            if self.stopped:
                return
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, int):
                for _ in range(piece):
                    signal.raise_signal(signal.SIGINT)
            else:
                yield piece

    def stop(self) -> None:
        self.stopped = True

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Return what types lines, then Ctrl-D, into a session, and returns its output."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background

    def run(chat: Any, *lines: str | BaseException) -> str:
        left = list(lines)

        def read_line(_: str) -> str:
            line = left.pop(0) if left else EOFError()
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read_line)
        before = signal.getsignal(signal.SIGINT)
        chat.cache = FakeCache()
        Session(chat, "the\x1b[2Jmodel").run()
        assert signal.getsignal(signal.SIGINT) is before
        return capsys.readouterr().out

    yield run
    signal.signal(signal.SIGINT, inherited)


def test_a_session_answers_each_line_and_prints_the_caches_counts(
    at_a_terminal: Callable[..., str],
) -> None:
    chat = FakeChat(" Good ", "day\x1b[31m.")
    output = at_a_terminal(chat, "Hello!", "", "Who are you?")
    assert chat.sent == ["Hello!", "Who are you?"]
    assert output.count("\nGood day[31m.\nhits 3, misses 5, hit rate 37.5 %") == 2
    assert "the[2Jmodel: 2 layers of 4 experts, 2 of each layer in slots on cpu" in output
    assert "\x1b" not in output


def test_ctrl_c_stops_the_reply_and_keeps_the_chat(at_a_terminal: Callable[..., str]) -> None:
    chat = FakeChat("begun", 1, "never seen")
    output = at_a_terminal(chat, "one", "two")
    assert chat.sent == ["one", "two"]
    assert output.count("begun") == 2
    assert "never seen" not in output


def test_ctrl_c_while_a_reply_is_stopping_ends_the_chat(at_a_terminal: Callable[..., str]) -> None:
    chat = FakeChat("begun", 2, "never seen")
    at_a_terminal(chat, "one", "two")
    assert chat.sent == ["one"]


@pytest.mark.parametrize(
    "end", ["/exit", EOFError(), KeyboardInterrupt()], ids=["/exit", "Ctrl-D", "Ctrl-C"]
)
def test_exit_ctrl_d_and_ctrl_c_end_the_chat(
    end: str | BaseException, at_a_terminal: Callable[..., str]
) -> None:
    chat = FakeChat("day")
    at_a_terminal(chat, "one", end, "two")
    assert chat.sent == ["one"]


def test_commands_are_run_and_not_sent(at_a_terminal: Callable[..., str]) -> None:
    chat = FakeChat("day")
    output = at_a_terminal(chat, "/reset", "/stats", "/nonsense")
    assert (chat.sent, chat.resets) == ([], 1)
    assert "75.0 %" in output
    assert "/nonsense: no such command" in output
    assert "forget the conversation" in output


@pytest.mark.parametrize(
    "error", [ConfigError("too long"), MixoffError("damaged")], ids=["setting", "other"]
)
def test_a_reply_that_is_refused_does_not_end_the_chat(
    error: MixoffError, at_a_terminal: Callable[..., str]
) -> None:
    chat = FakeChat("begun", error)
    output = at_a_terminal(chat, "one", "two")
    assert chat.sent == ["one", "two"]
    assert output.count(f"begun\n{error}\n") == 2
