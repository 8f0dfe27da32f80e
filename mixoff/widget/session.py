"""The actions of a chat box on its chat, one at a time, and the updates they cause.

One lock guards every change of a box's state; the chat's own lock excludes replies of other boxes.
Of the model only the chat is kept, so that closing the chat frees the model.
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
from mixoff.widget.worker import COUNTS_PER_SECOND, TEXT_PER_SECOND, Throttle, Worker, sentence

if TYPE_CHECKING:
    from mixoff.chat.chat import Chat
    from mixoff.chat.reply import ReplyStats

_BUSY = "A reply is running: wait for its end, or stop it in the box that began it."
LOADED_AGAIN = "The model was loaded again: run this cell again."
SHUT = "This box was closed: make another one with mixoff.ChatWidget(chat)."


class Session:
    """A chat box's state: idle or replying, with current and requested settings.

    Attributes
    ----------
    controls
        The widgets.
    worker
        The thread of the running reply, or of the last one; None before the first.
    is_replying, is_shut
        Whether a reply of this box runs; whether the box was closed.
    """

    def __init__(self, chat: "Chat") -> None:
        self._chat = chat
        self._lock = threading.RLock()
        self.worker: Worker | None = None
        self.is_replying = self.is_shut = False
        self._earlier: list[dict[str, str]] = []  # messages before those of the running reply
        self._forgotten: list[dict[str, str]] = []
        self._notice = ""  # is shown beside the progress of a reply
        self._meter, self._tuning = Meter(chat), Tuning(chat)
        can_prefetch = self._tuning.prefetch is not None
        self.controls = Controls(chat.sampling, self._tuning.num_experts, can_prefetch=can_prefetch)
        self._paint = Painter(chat, self.controls, self._meter, self._tuning)
        self._show_conversation("Ready.")

    def perform(self, action: Callable[[], object]) -> None:
        """Perform an action under the box's lock, and show its error, if any."""
        with self._lock:
            try:
                self.check_open()
                action()
            except Exception as error:  # any error of a tokenizer must leave the box usable
                refused = isinstance(error, MixoffError) and self._chat.is_replying
                self.notify(_BUSY if refused else sentence(error))

    def check_open(self) -> None:
        """Refuse an action on a closed box, or on one with a closed chat.

        Raises
        ------
        MixoffError
            If either was closed.
        """
        if self.is_shut:
            raise MixoffError(SHUT)
        if self._chat.is_closed:
            raise MixoffError(LOADED_AGAIN)

    def notify(self, text: str) -> None:
        """Show a sentence; during a reply, until the reply has ended."""
        self._notice = text
        self._paint.say(text)

    def stop(self) -> None:
        """End this box's reply, if one runs, within one token."""
        if self.is_replying:
            self._chat.stop()

    def shut(self) -> None:
        """Refuse further actions, and end this box's reply."""
        with self._lock:
            self.is_shut = True
        self.stop()

    def send(self) -> None:
        """Begin a reply to the typed message."""
        text = self.controls.message.value
        if not (text.strip() or self.is_replying):
            self.notify("Write a message first.")
            return
        self.begin(text)
        self.controls.message.value = ""

    def begin(self, text: str | None = None) -> Worker:
        """Begin a reply to a message; without one, regenerate the last reply.

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
                self._earlier, message = messages[:-2], messages[-2]
            else:
                self._earlier, message = messages, {"role": "user", "content": text}
            self._show_begin(message)
            self.worker = self._start_worker(pieces, text)
            return self.worker

    def _show_begin(self, message: dict[str, str]) -> None:
        self.is_replying, self._notice = True, ""
        self._meter.begin()
        self._paint.settings()
        self._paint.log([*self._earlier, message], self._forgotten)
        self._paint.growing("")
        self._paint.say("Reading the message.")
        self.controls.set_replying(True)

    def _start_worker(self, pieces: Iterator[str], text: str | None) -> Worker:
        throttles = (
            Throttle(TEXT_PER_SECOND, self._paint.growing),
            Throttle(COUNTS_PER_SECOND, lambda _: self._paint.progress(self._notice)),
        )
        on_end = partial(self._end, self._chat.last, text)
        worker = Worker(pieces, self._between_tokens, throttles, on_end)
        worker.start()
        return worker

    def _between_tokens(self) -> None:
        self._meter.count()
        if self._tuning.is_pending:
            with self._lock:
                self._apply()  # this thread runs the model, so no token is computed now

    def _end(self, previous: "ReplyStats | None", text: str | None, worker: Worker) -> None:
        """Show the ended reply, and enable the controls for the next message."""
        with self._lock:
            try:
                last = self._chat.last if self._chat.last is not previous else None
                self._meter.end(last)
                if last is not None:
                    self._forgotten += self._earlier[: 2 * last.dropped_turns]
                elif text is not None and not self.controls.message.value:
                    self.controls.message.value = text  # the chat removed it: it can be sent again
                if self._tuning.is_pending:
                    self._apply_when_idle()
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
        closed = LOADED_AGAIN if self._chat.is_closed else ""
        notice = "" if self._notice == _BUSY else self._notice
        self._paint.say(" ".join(filter(None, (closed or worker.problem or ended, notice))))

    def tune(self, *, slots: int | None = None, prefetch: int | None = None) -> None:
        """Change the number of slots or prefetched experts, during a reply after the next token."""
        if self._tuning.request(slots=slots, prefetch=prefetch) and not self.is_replying:
            self._apply_when_idle()

    def _apply_when_idle(self) -> None:
        try:
            with self._chat.idle():
                self._apply()
        except MixoffError:  # another box's reply runs, or the chat was closed
            self._tuning.discard()
            self.notify(LOADED_AGAIN if self._chat.is_closed else _BUSY)
            self._paint.settings()

    def _apply(self) -> None:
        try:
            self._tuning.apply()
        except (MixoffError, RuntimeError) as error:  # torch's out-of-memory is a RuntimeError
            self.notify(sentence(error))
        self._paint.settings()

    def set_sampling(self, name: str, value: Any) -> None:
        """Change a setting of sampling for the next replies."""
        self._chat.sampling = replace(self._chat.sampling, **{name: value})

    def set_system(self, text: str) -> None:
        """Set the instructions for the whole conversation; blank ones count as none."""
        system = text if text.strip() else None
        if system != self._chat.system:
            try:
                self._chat.system = system
            finally:
                self._paint.settings()

    def clear(self) -> None:
        """Forget the conversation."""
        self._chat.reset()
        self._show_conversation("The conversation is forgotten.")

    def save(self) -> None:
        """Write the conversation to the named file."""
        path = self._path()
        self._chat.save(path)
        self.notify(f"Saved to {path}.")

    def restore(self) -> None:
        """Replace the conversation by the one in the named file."""
        path = self._path()
        self._chat.restore(path)
        self._show_conversation(f"Restored from {path}.")

    def _path(self) -> Path:
        return Path(self.controls.path.value.strip() or "conversation.json").expanduser().resolve()

    def _show_conversation(self, text: str) -> None:
        """Show a new or restored conversation, and a sentence about it."""
        self._forgotten.clear()
        self._meter.restart()
        self._paint.log(self._chat.messages)
        self._paint.settings()
        self._paint.gauges()
        self.notify(text)
