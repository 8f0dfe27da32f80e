"""What a chat box does to its chat, one thing at a time, and what it shows of it then.

Every change of its state passes through one lock; two boxes on one chat meet in the chat's own.
Nothing of the model is kept but the chat, so that closing the chat frees the model.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixoff.errors import MixoffError
from mixoff.widget.controls import Controls
from mixoff.widget.meter import Meter
from mixoff.widget.painter import Painter, ending
from mixoff.widget.tuning import Tuning
from mixoff.widget.worker import FIGURES_PER_SECOND, TEXT_PER_SECOND, Beat, Worker, sentence

if TYPE_CHECKING:
    from mixoff.chat.chat import Chat
    from mixoff.chat.reply import ReplyStats

_BUSY = "A reply is running: wait for its end, or stop it in the box where it was asked for."
LOADED_AGAIN = "The model was loaded again: run this cell again."
SHUT = "This box was closed: make another one with mixoff.ChatWidget(chat)."


class Session:
    """A chat as a box sees it: idle or replying, with settings that are so or are asked for.

    Attributes
    ----------
    controls
        The widgets, which show what is so.
    worker
        Reads the reply that runs, or the last one; None before the first.
    is_replying, is_shut
        Whether a reply of this box runs; whether the box was closed.
    """

    def __init__(self, chat: "Chat") -> None:
        self._chat = chat
        self._lock = threading.RLock()
        self.worker: Worker | None = None
        self.is_replying = self.is_shut = False
        self._before: list[dict[str, str]] = []  # what was said before the reply that runs
        self._forgotten: list[dict[str, str]] = []
        self._notice = ""  # what is told beside the progress of a reply
        self._meter, self._tuning = Meter(chat), Tuning(chat)
        can_prefetch = self._tuning.prefetch is not None
        self.controls = Controls(chat.sampling, self._tuning.num_experts, can_prefetch=can_prefetch)
        self._paint = Painter(chat, self.controls, self._meter, self._tuning)
        self._show_other("Ready.")

    def alone(self, act: Callable[[], object]) -> None:
        """Do something while nothing else changes, and show what goes wrong."""
        with self._lock:
            try:
                self.check_open()
                act()
            except Exception as error:  # the box must outlive whatever a tokenizer raises
                refused = isinstance(error, MixoffError) and self._chat.is_replying
                self.tell(_BUSY if refused else sentence(error))

    def check_open(self) -> None:
        """Refuse what a box that was closed, or one whose chat was, can't do.

        Raises
        ------
        MixoffError
            If either was closed.
        """
        if self.is_shut:
            raise MixoffError(SHUT)
        if self._chat.is_closed:
            raise MixoffError(LOADED_AGAIN)

    def tell(self, text: str) -> None:
        """Show a sentence, and while a reply runs, go on showing it until that has ended."""
        self._notice = text
        self._paint.say(text)

    def stop(self) -> None:
        """End this box's reply, if one runs, within a token."""
        if self.is_replying:
            self._chat.stop()

    def shut(self) -> None:
        """Take no more orders, and end this box's reply."""
        with self._lock:
            self.is_shut = True
        self.stop()

    def send(self) -> None:
        """Begin a reply to what is typed."""
        text = self.controls.message.value
        if not (text.strip() or self.is_replying):
            self.tell("Write a message first.")
            return
        self.begin(text)
        self.controls.message.value = ""

    def begin(self, text: str | None = None) -> Worker:
        """Begin a reply to a message, or without one, another reply to the last message.

        Raises
        ------
        MixoffError
            If a reply is running, there is none to regenerate, or the box or chat was closed.
        """
        with self._lock:
            self.check_open()
            if self.is_replying:
                raise MixoffError(_BUSY)
            messages = [message for message in self._chat.messages if message["role"] != "system"]
            pieces = self._chat.regenerate() if text is None else self._chat.send(text)
            if text is None:
                self._before, asked = messages[:-2], messages[-2]
            else:
                self._before, asked = messages, {"role": "user", "content": text}
            self._show_begin(asked)
            self.worker = self._started(pieces, text)
            return self.worker

    def _show_begin(self, asked: dict[str, str]) -> None:
        self.is_replying, self._notice = True, ""
        self._meter.begin()
        self._paint.settings()
        self._paint.log([*self._before, asked], self._forgotten)
        self._paint.growing("")
        self._paint.say("Reading the message.")
        self.controls.set_replying(True)

    def _started(self, pieces: Iterator[str], text: str | None) -> Worker:
        last = self._chat.last
        beats = (
            Beat(TEXT_PER_SECOND, self._paint.growing),
            Beat(FIGURES_PER_SECOND, lambda _: self._paint.progress(self._notice)),
        )
        on_end = partial(self._end, last, text)
        worker = Worker(pieces, self._between_tokens, beats, on_end)
        worker.start()
        return worker

    def _between_tokens(self) -> None:
        self._meter.count()
        if self._tuning.is_asked:
            with self._lock:
                self._apply()  # this thread reads the reply, so no token is computed now

    def _end(self, before: "ReplyStats | None", text: str | None, worker: Worker) -> None:
        """Show a reply that has ended, and take the next message."""
        with self._lock:
            try:
                last = self._chat.last if self._chat.last is not before else None
                self._meter.end(last)
                if last is not None:
                    self._forgotten += self._before[: 2 * last.dropped_turns]
                elif text is not None and not self.controls.message.value:
                    self.controls.message.value = text  # the chat took it back: it can be sent anew
                if self._tuning.is_asked:
                    self._apply_alone()
                self._show_end(worker, last)
            finally:
                self.is_replying = False
                self.controls.set_replying(False)

    def _show_end(self, worker: Worker, last: "ReplyStats | None") -> None:
        self._paint.log(self._chat.messages, self._forgotten)
        self._paint.growing("")
        self._paint.settings()
        self._paint.gauges()
        ended = "" if last is None or worker.problem else ending(last)
        gone = LOADED_AGAIN if self._chat.is_closed else ""
        notice = "" if self._notice == _BUSY else self._notice
        self._paint.say(" ".join(filter(None, (gone or worker.problem or ended, notice))))

    def tune(self, *, slots: int | None = None, prefetch: int | None = None) -> None:
        """Keep or guess so many experts: now, or when the next token has been computed."""
        if self._tuning.ask(slots=slots, prefetch=prefetch) and not self.is_replying:
            self._apply_alone()

    def _apply_alone(self) -> None:
        try:
            with self._chat.idle():
                self._apply()
        except MixoffError:  # another box's reply runs, or the chat was closed
            self._tuning.drop()
            self.tell(LOADED_AGAIN if self._chat.is_closed else _BUSY)
            self._paint.settings()

    def _apply(self) -> None:
        try:
            self._tuning.apply()
        except (MixoffError, RuntimeError) as error:  # torch's, when memory is short, is the latter
            self.tell(sentence(error))
        self._paint.settings()

    def set_sampling(self, name: str, value: Any) -> None:
        """Draw the tokens of later replies with another temperature, say."""
        self._chat.sampling = replace(self._chat.sampling, **{name: value})

    def set_system(self, text: str) -> None:
        """Give the model other instructions for the whole conversation; empty ones are none."""
        system = text if text.strip() else None
        if system != self._chat.system:
            try:
                self._chat.system = system
            finally:
                self._paint.settings()

    def clear(self) -> None:
        """Forget the conversation."""
        self._chat.reset()
        self._show_other("The conversation is forgotten.")

    def save(self) -> None:
        """Write the conversation to the file that is named."""
        path = self._path()
        self._chat.save(path)
        self.tell(f"Saved to {path}.")

    def restore(self) -> None:
        """Go on with the conversation in the file that is named."""
        path = self._path()
        self._chat.restore(path)
        self._show_other(f"Restored from {path}.")

    def _path(self) -> Path:
        return Path(self.controls.path.value.strip() or "conversation.json").expanduser().resolve()

    def _show_other(self, text: str) -> None:
        """Show a conversation that took the place of the one before."""
        self._forgotten.clear()
        self._meter.restart()
        self._paint.log(self._chat.messages)
        self._paint.settings()
        self._paint.gauges()
        self.tell(text)
