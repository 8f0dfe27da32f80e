"""A conversation with a model: its turns, and how a reply begins, ends or is cut short.

Knows when a context is full; nothing of how text becomes ids, and ids a reply (`streaming`).
"""

import logging
import random
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from mixoff.cache.cache import find_cache
from mixoff.chat.context import Context, context_length, end_ids
from mixoff.chat.reply import ReplyStats, Run, Turn
from mixoff.chat.sampling import Sampling
from mixoff.chat.saved import read_conversation, write_conversation
from mixoff.chat.template import Template
from mixoff.chat.text_stream import TextStream
from mixoff.errors import ConfigError, MixoffError
from mixoff.planning.plan import PREFILL_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PATIENCE_S = 10.0  # how long `close` waits for a reply to stop

_log = logging.getLogger(__name__)


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
    temperature, top_p, max_new_tokens
        How tokens are drawn, and how many: `mixoff.chat.Sampling`.
    seed
        The same seed gives the same replies to the same messages; None draws one.

    Attributes
    ----------
    cache
        The model's expert cache; None if it has none.
    sampling
        As given; one that is set serves from the next reply on.
    last
        What the last reply took; None before the first.
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
        self.sampling = Sampling(temperature, top_p, max_new_tokens)
        self._model: PreTrainedModel | None = model
        self.tokenizer = tokenizer
        self.cache = find_cache(model)
        self._system = system
        self._template = Template(tokenizer, system)
        self._seed = seed
        self._limit = context_length(model)
        self._ends = end_ids(model, tokenizer)
        self._busy = threading.Lock()
        self._stopping = threading.Event()
        self._begin()

    def _begin(self) -> None:
        self._context: Context | None = Context(self.model)
        self._turns: list[Turn] = []
        self._replies = 0
        self._chat_seed = secrets.randbits(64) if self._seed is None else self._seed
        self.last: ReplyStats | None = None

    @property
    def model(self) -> "PreTrainedModel":
        """The model; MixoffError if the chat was closed."""
        if self._model is None:
            raise MixoffError("The chat was closed and its model given back: load it again.")
        return self._model

    @property
    def system(self) -> str | None:
        """Instructions for the whole conversation, whose turns stay when they change.

        Setting them raises MixoffError while a reply runs.
        """
        return self._system

    @system.setter
    def system(self, system: str | None) -> None:
        with self._alone():
            self._template, self._system = Template(self.tokenizer, system), system

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far, as far as the model remembers it: dicts of role and content."""
        messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        for turn in self._turns:
            messages.append({"role": "user", "content": turn.user})
            if turn.text is not None:
                messages.append({"role": "assistant", "content": turn.text})
        return messages

    @property
    def is_replying(self) -> bool:
        """Whether a reply has begun and not ended."""
        return self._busy.locked()

    @property
    def is_closed(self) -> bool:
        """Whether the model was given back."""
        return self._model is None

    def send(self, text: str) -> Iterator[str]:
        """Return an iterator over the reply, which is generated as its pieces are asked for.

        However the reply ends (by itself, by `stop`, by closing the iterator, by an interrupt or an
        error), what was streamed of it is kept and the conversation can go on. Only an error before
        the first token takes the message back. A message that the model's context can't hold
        raises ConfigError; one sent while a reply is running, or after `close`, MixoffError.
        """
        with self._alone():
            self._fit(text, self._turns)
        self._stopping.clear()
        return self._reply(text)

    def regenerate(self) -> Iterator[str]:
        """Return an iterator over another reply to the last message, in place of the one it had.

        It is drawn anew. If it ends before its first token, the old reply stays. Without a reply
        yet, or while one is running, this raises MixoffError.
        """
        with self._alone():
            if not self._turns:
                raise MixoffError("There is no reply yet to regenerate: send a message first.")
            text = self._turns[-1].user
        self._stopping.clear()
        return self._reply(text, again=True)

    def stop(self) -> None:
        """End the running reply within one token; any thread may call this."""
        self._stopping.set()

    def reset(self) -> None:
        """Forget the conversation, as if the chat were new; MixoffError while a reply runs."""
        with self._alone():
            self._begin()

    def save(self, path: str | PathLike[str]) -> None:
        """Write the conversation to a file, as `mixoff.chat.saved` tells.

        Raises
        ------
        MixoffError
            If it can't be written, or a reply runs.
        """
        with self._alone():
            pairs = [(turn.user, turn.text or "") for turn in self._turns]
            write_conversation(Path(path), self._system, pairs)

    def restore(self, path: str | PathLike[str]) -> None:
        """Go on with a conversation that was saved, of this model or of another, in place of this.

        Raises
        ------
        CheckpointError
            If the file is missing, or holds no conversation.
        MixoffError
            If a reply runs.
        """
        system, pairs = read_conversation(Path(path))
        with self._alone():
            template = Template(self.tokenizer, system)
            turns = [Turn(user, template.encode_reply(reply), reply) for user, reply in pairs]
            self._begin()
            self._template, self._system, self._turns = template, system, turns
            self._replies = len(turns)

    def close(self) -> None:
        """End the running reply and give the model and its cache back; the text stays readable."""
        self.stop()
        done = self._busy.acquire(timeout=_PATIENCE_S)
        self._model = self._context = None
        cache, self.cache = self.cache, None
        if cache is not None:
            cache.close()
        if done:
            self._busy.release()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Keep replies from beginning inside the ``with`` block, for changing what they run on.

        So any thread may resize the cache, say. MixoffError while a reply runs, or after `close`.
        """
        with self._alone():
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise MixoffError(
                "A reply is running: read it to its end, close its iterator, or stop() and read on."
            )
        try:
            _ = self.model  # raises if it was given back
            yield
        finally:
            self._busy.release()

    def _reply(self, text: str, *, again: bool = False) -> Iterator[str]:
        with self._alone():
            before = self._turns
            base = before[:-1] if again else before
            fitted = self._fit(text, base)
            run = Run(*fitted, TextStream(self.tokenizer), self.sampling, self.cache)
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
                    self._finish(run, dropped=len(base) + 1 - len(run.turns))
                if not run.drawn and (again or not keep):
                    self._turns = before

    def _fit(self, text: str, before: Sequence[Turn]) -> tuple[list[Turn], list[int]]:
        """Return the latest turns that the context holds, the new one with them, and their ids."""
        room = max(1, min(self.sampling.max_new_tokens, self._limit // 4))
        for dropped in range(len(before) + 1):
            turns = [*before[dropped:], Turn(text)]
            users, replies = [turn.user for turn in turns], [turn.reply for turn in turns[:-1]]
            ids = self._template.encode(users, replies)
            if len(ids) + (room if replies else 1) <= self._limit:
                return turns, ids
        raise ConfigError(
            f"The message takes {len(ids)} tokens in its template, and the model's context holds "
            f"{self._limit}, a reply included: shorten the message or the system prompt."
        )

    def _pieces(self, run: Run) -> Iterator[str]:
        longest = min(run.sampling.max_new_tokens, self._limit - len(run.prompt))
        seeds = random.Random(f"{self._chat_seed} {self._replies}")  # each reply has its own seed
        generator = torch.Generator().manual_seed(seeds.getrandbits(63))
        context = self._context
        assert context is not None
        logits = self._prefill(context, run)
        while logits is not None:
            token = run.sampling.draw(logits, generator)
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
            logits = None if self._stopping.is_set() else context.read([token])
        if run.finish != "stopped" and (piece := run.stream.finish()):
            yield piece

    def _prefill(self, context: Context, run: Run) -> torch.Tensor | None:
        """Read what is new in the prompt; None if the reply was stopped meanwhile."""
        logits = None
        for start in range(context.rewind(run.prompt), len(run.prompt), PREFILL_TOKENS):
            if self._stopping.is_set():
                return None
            chunk = run.prompt[start : start + PREFILL_TOKENS]
            logits = context.read(chunk)  # [V]
            run.prefilled += len(chunk)
        return logits

    def _finish(self, run: Run, *, dropped: int) -> None:
        turn = run.turns[-1]
        turn.reply, turn.text = run.stream.ids, run.stream.text
        self._replies += 1
        self.last = run.statistics(dropped=dropped)
        if dropped:
            _log.info(self.last.notice)
