"""A conversation with a model: its turns, and how a reply begins, ends or is cut short.

Knows turns and the context's limit; nothing of how text is encoded (`template`), ids are read
(`context`) or decoded (`text_stream`).
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
from mixoff.chat.reply import ReplyStats, RunningReply, Turn
from mixoff.chat.sampling import Sampling
from mixoff.chat.saved import read_conversation, write_conversation
from mixoff.chat.template import Template
from mixoff.chat.text_stream import TextStream
from mixoff.errors import ConfigError, MixoffError
from mixoff.hub.snapshot import folder_title

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PATIENCE_S = 10.0  # limit of `close`'s wait for a running reply

_log = logging.getLogger(__name__)


class Chat:
    """A conversation with a model: streamed replies, and a KV cache that is kept between turns.

    Only tokens that are new since the last turn are prefilled. Messages and the system prompt are
    plain text to the model: names of special tokens in them are encoded as ordinary text. A setting
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
        The same seed gives the same replies to the same messages; None draws a seed.

    Attributes
    ----------
    cache
        The model's expert cache; None for a model without one, and after `close`.
    sampling
        The settings of sampling; an assigned value takes effect with the next reply.
    last
        Statistics of the last reply; None before the first.
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
        self._model: PreTrainedModel | None = model
        self._name = folder_title(Path(model.name_or_path or "")) or type(model).__name__
        self.cache = find_cache(model)
        self._turns: list[Turn] = []
        self.tokenizer = tokenizer
        self.sampling = Sampling(temperature, top_p, max_new_tokens)
        self._system = system
        self._template = Template(tokenizer, system)
        self._seed = seed
        self._limit = context_length(model)
        self._ends = end_ids(model, tokenizer)
        self._busy = threading.Lock()
        self._stopping = threading.Event()
        self._begin()

    def __repr__(self) -> str:
        turns = len(self._turns)
        conversation = f"{turns} turn{'s' * (turns != 1)}"
        model, cache = self._model, self.cache  # once each: another thread may close the chat
        if model is None:
            return f"Chat({self._name!r}, closed, {conversation})"
        slots = ""
        if cache is not None:
            slots = f"{cache.slots_per_layer} slots for {cache.num_experts} experts per layer, "
        return f"Chat({self._name!r} on {model.device}, {slots}{conversation})"

    def _begin(self) -> None:
        self._context: Context | None = Context(self.model)
        self._turns = []
        self._replies = 0
        self._chat_seed = secrets.randbits(64) if self._seed is None else self._seed
        self.last: ReplyStats | None = None

    @property
    def model(self) -> "PreTrainedModel":
        """The model; MixoffError after `close`."""
        if self._model is None:
            raise MixoffError("The chat was closed and its model released: load it again.")
        return self._model

    @property
    def system(self) -> str | None:
        """Instructions for the whole conversation; earlier turns are kept when they change.

        Setting them raises MixoffError while a reply runs, or after `close`.
        """
        return self._system

    @system.setter
    def system(self, system: str | None) -> None:
        with self._exclusive():
            self._template, self._system = Template(self.tokenizer, system), system

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation that fits the model's context: dicts of role and content."""
        messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        for turn in self._turns:
            messages.append({"role": "user", "content": turn.user})
            if turn.text is not None:
                messages.append({"role": "assistant", "content": turn.text})
        return messages

    @property
    def is_replying(self) -> bool:
        """Whether a reply is running."""
        return self._busy.locked()

    @property
    def is_closed(self) -> bool:
        """Whether the chat was closed and its model released."""
        return self._model is None

    def send(self, text: str) -> Iterator[str]:
        """Return an iterator over the reply, which is generated while the iterator is read.

        However the reply ends (by itself, by `stop`, by closing the iterator, by an interrupt or an
        error), the streamed part is kept and the conversation can go on. Only after an error before
        the first token is the message removed from the conversation. A message that the model's
        context can't hold raises ConfigError; one during a reply, or after `close`, MixoffError.
        """
        with self._exclusive():
            self._fit(text, self._turns)
        self._stopping.clear()
        return self._reply(text)

    def regenerate(self) -> Iterator[str]:
        """Return an iterator over a new reply to the last message, which replaces the old one.

        Its tokens are drawn with another seed. If it ends before its first token, the old reply is
        kept. Without a reply yet, during one, or after `close`, this raises MixoffError.
        """
        with self._exclusive():
            if not self._turns:
                raise MixoffError("There is no reply yet to regenerate: send a message first.")
            text = self._turns[-1].user
        self._stopping.clear()
        return self._reply(text, replaces_last=True)

    def stop(self) -> None:
        """End the running reply within one token; any thread may call this."""
        self._stopping.set()

    def reset(self) -> None:
        """Forget the conversation, as if the chat were new; MixoffError while a reply runs."""
        with self._exclusive():
            self._begin()

    def save(self, path: str | PathLike[str]) -> None:
        """Write the conversation to a file in the format of `mixoff.chat.saved`.

        Raises
        ------
        MixoffError
            If it can't be written, a reply runs, or the chat was closed.
        """
        with self._exclusive():
            pairs = [(turn.user, turn.text or "") for turn in self._turns]
            write_conversation(Path(path), self._system, pairs)

    def restore(self, path: str | PathLike[str]) -> None:
        """Replace the conversation by a saved one, of this model or of another.

        Raises
        ------
        CheckpointError
            If the file is missing, or holds no conversation.
        MixoffError
            If a reply runs, or the chat was closed.
        """
        system, pairs = read_conversation(Path(path))
        with self._exclusive():
            template = Template(self.tokenizer, system)
            turns = [Turn(user, template.encode_reply(reply), reply) for user, reply in pairs]
            self._begin()
            self._template, self._system, self._turns = template, system, turns
            self._replies = len(turns)

    def close(self) -> None:
        """End the running reply and release the model and its cache; messages stay readable."""
        self.stop()
        acquired = self._busy.acquire(timeout=_PATIENCE_S)
        self._model = self._context = None
        cache, self.cache = self.cache, None
        if cache is not None:
            cache.close()
        if acquired:
            self._busy.release()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Keep replies from beginning inside the ``with`` block, in which the cache may be resized.

        Any thread may call this. MixoffError while a reply runs, or after `close`.
        """
        with self._exclusive():
            yield

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise MixoffError(
                "A reply is running: read it to its end, close its iterator, or stop() and read on."
            )
        try:
            _ = self.model  # raises if the chat was closed
            yield
        finally:
            self._busy.release()

    def _reply(self, text: str, *, replaces_last: bool = False) -> Iterator[str]:
        with self._exclusive():
            before = self._turns
            earlier = before[:-1] if replaces_last else before
            turns, prompt = self._fit(text, earlier)
            stream = TextStream(self.tokenizer)
            limit = min(self.sampling.max_new_tokens, self._limit - len(prompt))
            reply = RunningReply(turns, prompt, limit, stream, self.sampling, self.cache)
            self._turns = turns
            keep = False
            try:
                for piece in self._pieces(reply):
                    yielded = perf_counter()
                    try:
                        yield piece
                    finally:  # the reader's time isn't the reply's
                        reply.started += perf_counter() - yielded
                keep = True
            except (KeyboardInterrupt, GeneratorExit):
                keep = True
                raise
            finally:
                if keep or reply.new_tokens:
                    self._finish(reply, dropped=len(earlier) + 1 - len(turns))
                if not reply.new_tokens and (replaces_last or not keep):
                    self._turns = before

    def _fit(self, text: str, earlier: Sequence[Turn]) -> tuple[list[Turn], list[int]]:
        """Return the latest turns that the context holds, with the new one, and their ids."""
        reserve = max(1, min(self.sampling.max_new_tokens, self._limit // 4))  # for the reply
        for dropped in range(len(earlier) + 1):
            turns = [*earlier[dropped:], Turn(text)]
            users, replies = [turn.user for turn in turns], [turn.reply for turn in turns[:-1]]
            ids = self._template.encode(users, replies)
            if len(ids) + (reserve if replies else 1) <= self._limit:
                return turns, ids
        raise ConfigError(
            f"The message takes {len(ids)} tokens in its template, and the model's context holds "
            f"{self._limit}, a reply included: shorten the message or the system prompt."
        )

    def _pieces(self, reply: RunningReply) -> Iterator[str]:
        seeds = random.Random(f"{self._chat_seed} {self._replies}")  # each reply has its own seed
        generator = torch.Generator().manual_seed(seeds.getrandbits(63))
        assert self._context is not None
        return reply.generate(self._context, generator, ends=self._ends, stopping=self._stopping)

    def _finish(self, reply: RunningReply, *, dropped: int) -> None:
        turn = reply.turns[-1]
        turn.reply, turn.text = reply.stream.ids, reply.stream.text
        self._replies += 1
        self.last = reply.statistics(dropped=dropped)
        if dropped:
            _log.info(self.last.notice)
