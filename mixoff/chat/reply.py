"""A turn of a conversation, its reply while it runs, and what that took. Draws nothing itself."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from mixoff.chat.sampling import Sampling
from mixoff.chat.text_stream import TextStream

if TYPE_CHECKING:
    from mixoff.cache.cache import ExpertCache
    from mixoff.cache.stats import CacheStats

Finish = Literal["stop", "length", "stopped"]

_NOTICE = "The context is full: the {} oldest turn(s) were forgotten."


@dataclass(frozen=True)
class ReplyStats:
    """What one reply took.

    Attributes
    ----------
    prompt_tokens, prefilled_tokens
        The context before the reply; the part of it that had to be computed.
    new_tokens
        Tokens drawn, the end of sequence included.
    seconds, seconds_to_first_token
        Time, without what the reader of the pieces spent.
    finish
        "stop" at the model's own end, "length" at `max_new_tokens` or the context's end, "stopped"
        when the user, or an error, ended it earlier.
    cache
        What the expert cache did; None if the model has none.
    dropped_turns, notice
        Oldest turns forgotten to make room; a sentence about it for the user, or None.
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
        """The decode rate: tokens after the first, by the time they took; 0 if there are none."""
        seconds = self.seconds - self.seconds_to_first_token
        return (self.new_tokens - 1) / seconds if self.new_tokens > 1 and seconds > 0 else 0.0


@dataclass
class Turn:
    """A message and its reply.

    Attributes
    ----------
    user
        What was asked.
    reply, text
        Ids as they were generated, without the end of sequence, and what they say; the text is None
        until the reply has ended.
    """

    user: str
    reply: list[int] = field(default_factory=list)
    text: str | None = None


@dataclass
class Run:
    """A reply while it is generated."""

    turns: list[Turn]  # the last one is this reply's
    prompt: list[int]
    stream: TextStream
    sampling: Sampling
    cache: "ExpertCache | None"
    started: float = field(default_factory=perf_counter)  # later by the reader's time
    seconds_to_first: float | None = None
    prefilled: int = 0
    drawn: int = 0
    finish: Finish = "stopped"

    def __post_init__(self) -> None:
        self._before = self.cache.stats() if self.cache is not None else None

    def statistics(self, *, dropped: int) -> ReplyStats:
        """Return what it took, when it has ended; `dropped` turns were forgotten for it."""
        seconds = perf_counter() - self.started
        return ReplyStats(
            prompt_tokens=len(self.prompt),
            prefilled_tokens=self.prefilled,
            new_tokens=self.drawn,
            seconds=seconds,
            seconds_to_first_token=self.seconds_to_first or seconds,
            finish=self.finish,
            cache=self.cache.stats() - self._before if self.cache and self._before else None,
            dropped_turns=dropped,
            notice=_NOTICE.format(dropped) if dropped else None,
        )
