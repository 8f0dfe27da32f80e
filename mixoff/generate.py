"""A conversation with a model: its turns, and how a reply begins, ends or is cut short.

Knows when a context is full; nothing of how text becomes ids, and ids a reply (`streaming`).
"""

import logging
import random
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import torch

from mixoff.errors import ConfigError, MixoffError
from mixoff.streaming import Context, Sampler, Template, TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mixoff.stats import CacheStats

Finish = Literal["stop", "length", "stopped"]

_CHUNK = 512  # ids of a prompt that are read at once: bounds the memory of activations

_log = logging.getLogger(__name__)


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
class _Turn:
    user: str
    reply: list[int] = field(default_factory=list)  # as generated, without the end of sequence
    text: str | None = None  # None until the reply has ended


@dataclass
class _Run:
    turns: list[_Turn]  # the last one is this reply's
    prompt: list[int]
    stream: TextStream
    cache_before: "CacheStats | None"
    started: float = field(default_factory=perf_counter)  # later by the reader's time
    seconds_to_first: float | None = None
    prefilled: int = 0
    drawn: int = 0
    finish: Finish = "stopped"


class Chat:
    """A conversation with a model, whose replies stream and whose KV cache is kept between turns.

    Only what is new since the last turn is prefilled. What a user writes is plain text to the
    model: names of special tokens, in messages or in the system prompt, are spelled out. A setting
    out of range, or a tokenizer without a usable chat template, raises ConfigError.

    Parameters
    ----------
    model, tokenizer
        A causal language model of transformers; its tokenizer, with a chat template.
    system
        Instructions for the whole conversation.
    temperature, top_p
        How tokens are drawn; temperature 0 always takes the most probable one.
    max_new_tokens
        The longest reply.
    seed
        The same seed gives the same replies to the same messages; None draws one.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        system: str | None = None,
        temperature: float = 0.9,
        top_p: float = 0.9,
        max_new_tokens: int = 512,
        seed: int | None = None,
    ) -> None:
        if not (isinstance(max_new_tokens, int) and max_new_tokens >= 1):
            raise ConfigError(
                f"max_new_tokens={max_new_tokens}: a reply has a token at least, so give 1 or more."
            )
        self._model, self._tokenizer, self._system = model, tokenizer, system
        self._sampler = Sampler(temperature, top_p)
        self._template = Template(tokenizer, system)
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._limit = _context_length(model)
        self._ends = _end_ids(model, tokenizer)
        self._busy = threading.Lock()
        self._stopping = threading.Event()
        self._begin()

    def _begin(self) -> None:
        self._context = Context(self._model)
        self._turns: list[_Turn] = []
        self._replies = 0
        self._chat_seed = secrets.randbits(64) if self._seed is None else self._seed
        self.last: ReplyStats | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far, as far as the model remembers it: dicts of role and content."""
        messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        for turn in self._turns:
            messages.append({"role": "user", "content": turn.user})
            if turn.text is not None:
                messages.append({"role": "assistant", "content": turn.text})
        return messages

    def send(self, text: str) -> Iterator[str]:
        """Return an iterator over the reply, which is generated as its pieces are asked for.

        However the reply ends (by itself, by `stop`, by closing the iterator, by an interrupt or an
        error), what was streamed of it is kept and the conversation can go on. Only an error before
        the first token takes the message back. A message that the model's context can't hold
        raises ConfigError; one sent while a reply is running, MixoffError.
        """
        with self._alone():
            self._fit(text)
        self._stopping.clear()
        return self._reply(text)

    def stop(self) -> None:
        """End the running reply within one token; any thread may call this."""
        self._stopping.set()

    def reset(self) -> None:
        """Forget the conversation, as if the chat were new; MixoffError while a reply runs."""
        with self._alone():
            self._begin()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise MixoffError(
                "A reply is running: read it to its end, close its iterator, or stop() and read on."
            )
        try:
            yield
        finally:
            self._busy.release()

    def _reply(self, text: str) -> Iterator[str]:
        with self._alone():
            before = self._turns
            run = _Run(*self._fit(text), TextStream(self._tokenizer), _cache_stats(self._model))
            self._turns = run.turns
            keep = False
            try:
                for piece in self._pieces(run):
                    left = perf_counter()
                    try:
                        yield piece
                    finally:
                        run.started += perf_counter() - left
                keep = True
            except (KeyboardInterrupt, GeneratorExit):
                keep = True
                raise
            finally:
                if keep or run.drawn:
                    self._finish(run, dropped=len(before) + 1 - len(run.turns))
                else:
                    self._turns = before

    def _fit(self, text: str) -> tuple[list[_Turn], list[int]]:
        """Return the latest turns that the context holds, the new one with them, and their ids."""
        room = max(1, min(self._max_new_tokens, self._limit // 4))
        for dropped in range(len(self._turns) + 1):
            turns = [*self._turns[dropped:], _Turn(text)]
            users, replies = [turn.user for turn in turns], [turn.reply for turn in turns[:-1]]
            ids = self._template.encode(users, replies)
            if len(ids) + (room if replies else 1) <= self._limit:
                return turns, ids
        raise ConfigError(
            f"The message takes {len(ids)} tokens in its template, and the model's context holds "
            f"{self._limit}, a reply included: shorten the message or the system prompt."
        )

    def _pieces(self, run: _Run) -> Iterator[str]:
        longest = min(self._max_new_tokens, self._limit - len(run.prompt))
        seeds = random.Random(f"{self._chat_seed} {self._replies}")  # each reply has its own seed
        generator = torch.Generator().manual_seed(seeds.getrandbits(63))
        logits = self._prefill(run)
        while logits is not None:
            token = self._sampler.draw(logits, generator)
            run.drawn += 1
            run.seconds_to_first = run.seconds_to_first or perf_counter() - run.started
            if token in self._ends:
                run.finish = "stop"
                break
            if piece := run.stream.push(token):
                yield piece
            if run.drawn == longest:
                run.finish = "length"
                break
            logits = None if self._stopping.is_set() else self._context.read([token])
        if run.finish != "stopped" and (piece := run.stream.finish()):
            yield piece

    def _prefill(self, run: _Run) -> torch.Tensor | None:
        """Read what is new in the prompt; None if the reply was stopped meanwhile."""
        logits = None
        for start in range(self._context.rewind(run.prompt), len(run.prompt), _CHUNK):
            if self._stopping.is_set():
                return None
            chunk = run.prompt[start : start + _CHUNK]
            logits = self._context.read(chunk)  # [V]
            run.prefilled += len(chunk)
        return logits

    def _finish(self, run: _Run, *, dropped: int) -> None:
        turn, seconds = run.turns[-1], perf_counter() - run.started
        turn.reply, turn.text = run.stream.ids, run.stream.text
        self._replies += 1
        notice = f"The context is full: the {dropped} oldest turn(s) were forgotten."
        if dropped:
            _log.info(notice)
        after = _cache_stats(self._model)
        self.last = ReplyStats(
            prompt_tokens=len(run.prompt),
            prefilled_tokens=run.prefilled,
            new_tokens=run.drawn,
            seconds=seconds,
            seconds_to_first_token=run.seconds_to_first or seconds,
            finish=run.finish,
            cache=after - run.cache_before if after and run.cache_before else None,
            dropped_turns=dropped,
            notice=notice if dropped else None,
        )


def _context_length(model: "PreTrainedModel") -> int:
    """Return how many positions the model knows; as good as endless if it doesn't say."""
    config = model.config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None) or sys.maxsize


def _end_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Return all ids that end a reply: the model's, one or several, and the tokenizer's."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = ends if isinstance(ends, list | tuple) else [ends]
    return frozenset(end for end in (*several, tokenizer.eos_token_id) if end is not None)


def _cache_stats(model: "PreTrainedModel") -> "CacheStats | None":
    from mixoff.cache import cache_of

    try:
        return cache_of(model).stats()
    except MixoffError:
        return None
