"""A turn of a conversation, its reply while it is generated, and the reply's statistics.

Knows tokens, counts and times; nothing of the conversation around the turn.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mixoff.chat.context import Context
from mixoff.chat.sampling import Sampling
from mixoff.chat.text_stream import TextStream
from mixoff.planning.plan import PREFILL_TOKENS

if TYPE_CHECKING:
    from mixoff.cache.cache import ExpertCache
    from mixoff.cache.stats import CacheStats

Finish = Literal["stop", "length", "stopped"]

_NOTICE = "The context is full: the {} oldest turn(s) were forgotten."


@dataclass(frozen=True)
class ReplyStats:
    """Statistics of one reply.

    Attributes
    ----------
    prompt_tokens, prefilled_tokens
        Tokens of the context before the reply; those of them that had to be computed.
    new_tokens
        Tokens drawn, the end of sequence included.
    seconds, seconds_to_first_token
        Time, without what the reader of the pieces spent between them.
    finish
        "stop" at an end-of-sequence token, "length" at `max_new_tokens` or the context's end,
        "stopped" if the user, or an error, ended it earlier.
    cache
        What the expert cache did; None if the model has none.
    dropped_turns, notice
        Number of oldest turns dropped to fit the context; a sentence about it for the user, or
        None.
    """

    prompt_tokens: int
    prefilled_tokens: int
    new_tokens: int
    seconds: float
    seconds_to_first_token: float
    finish: Finish
    cache: "CacheStats | None"
    dropped_turns: int
    notice: str | None

    @property
    def tokens_per_second(self) -> float:
        """The decode rate: tokens after the first over their time; 0 without such tokens."""
        seconds = self.seconds - self.seconds_to_first_token
        return (self.new_tokens - 1) / seconds if self.new_tokens > 1 and seconds > 0 else 0.0


@dataclass
class Turn:
    """A message and its reply.

    Attributes
    ----------
    user
        The message.
    reply, text
        The reply's ids as generated, without the end of sequence, and its text; the text is None
        until the reply has ended.
    """

    user: str
    reply: list[int] = field(default_factory=list)
    text: str | None = None


@dataclass
class RunningReply:
    """A reply while it is generated."""

    turns: list[Turn]  # the last one is this reply's
    prompt: list[int]
    limit: int  # of new tokens
    stream: TextStream
    sampling: Sampling
    cache: "ExpertCache | None"
    started: float = field(default_factory=perf_counter)  # is moved on by the reader's time
    seconds_to_first: float | None = None
    prefilled_tokens: int = 0
    new_tokens: int = 0
    finish: Finish = "stopped"

    def __post_init__(self) -> None:
        self._before = self.cache.stats() if self.cache is not None else None

    def generate(
        self, context: Context, generator: torch.Generator, *, ends: frozenset[int], stopping: Event
    ) -> Iterator[str]:
        """Yield the reply's text in pieces, until a token in `ends`, the limit or `stopping`."""
        logits = self._prefill(context, stopping)
        while logits is not None:
            token = self.sampling.draw(logits, generator)
            self.new_tokens += 1
            self.seconds_to_first = self.seconds_to_first or perf_counter() - self.started
            if token in ends:
                self.finish = "stop"
                break
            if piece := self.stream.push(token):
                yield piece
            if self.new_tokens == self.limit:
                self.finish = "length"
                break
            logits = None if stopping.is_set() else context.read([token])
        if self.finish != "stopped" and (piece := self.stream.finish()):
            yield piece

    def _prefill(self, context: Context, stopping: Event) -> Tensor | None:
        """Read the prompt's new ids and return the last one's logits [V]; None if stopped."""
        logits = None
        for start in range(context.rewind(self.prompt), len(self.prompt), PREFILL_TOKENS):
            if stopping.is_set():
                return None
            chunk = self.prompt[start : start + PREFILL_TOKENS]
            logits = context.read(chunk)  # [V]
            self.prefilled_tokens += len(chunk)
        return logits

    def statistics(self, *, dropped: int) -> ReplyStats:
        """Return the statistics of the ended reply, for which `dropped` turns were dropped."""
        seconds = perf_counter() - self.started
        return ReplyStats(
            prompt_tokens=len(self.prompt),
            prefilled_tokens=self.prefilled_tokens,
            new_tokens=self.new_tokens,
            seconds=seconds,
            seconds_to_first_token=self.seconds_to_first or seconds,
            finish=self.finish,
            cache=self.cache.stats() - self._before if self.cache and self._before else None,
            dropped_turns=dropped,
            notice=_NOTICE.format(dropped) if dropped else None,
        )
