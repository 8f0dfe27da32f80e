"""The thread that reads a reply and paints it at a limited rate. Knows no widgets."""

import threading
from collections.abc import Callable, Iterator
from time import monotonic

from mixoff.errors import MixoffError

TEXT_PER_SECOND = 15  # writes of the growing reply: smooth to the eye, cheap for a browser
COUNTS_PER_SECOND = 4

_POLL_S = 0.1  # an interrupt is handled between two polls, on any system


class Throttle:
    """Calls `paint` at most so many times per second.

    Parameters
    ----------
    paint
        Paints the text so far.
    clock
        Returns the time in seconds.
    """

    def __init__(
        self,
        per_second: float,
        paint: Callable[[str], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._gap_s, self._paint, self._clock = 1 / per_second, paint, clock
        self._next_s = clock()

    def tick(self, text: str) -> None:
        """Paint the text so far if the last time is long enough ago."""
        if (now := self._clock()) >= self._next_s:
            self._next_s = now + self._gap_s
            self._paint(text)


class Worker(threading.Thread):
    """Reads one reply, and calls `on_end` however the reply ends.

    Parameters
    ----------
    pieces
        The pieces of the reply; reading them runs the model.
    between_tokens
        Called after each piece, before the model computes the next token.
    throttles
        Paint the text so far.
    on_end
        Called at the end, in this thread.

    Attributes
    ----------
    text
        The text read so far.
    problem
        A sentence about the error that ended the reply; None without one. The error itself isn't
        kept, since its traceback would keep the model alive.
    """

    def __init__(
        self,
        pieces: Iterator[str],
        between_tokens: Callable[[], None],
        throttles: tuple[Throttle, ...],
        on_end: Callable[["Worker"], None],
    ) -> None:
        super().__init__(name="mixoff-reply", daemon=True)
        self.text = ""
        self._has_ended = threading.Event()
        self.problem: str | None = None
        self._pieces: Iterator[str] | None = pieces
        self._between_tokens, self._throttles, self._on_end = between_tokens, throttles, on_end

    def run(self) -> None:
        """Read the reply."""
        try:
            self._read()
        except KeyboardInterrupt:
            self.problem = "The reply was interrupted."
        except Exception as error:  # any error of a model must leave the box usable
            self.problem = sentence(error)
        finally:
            self._pieces = None  # closes an iterator that wasn't read to its end
            try:
                self._on_end(self)
            finally:
                self._has_ended.set()

    def wait(self) -> None:
        """Wait until `on_end` has returned; after an interrupt, this may be called again.

        (An interrupted `join` may take a running thread for an ended one.)
        """
        while not self._has_ended.wait(_POLL_S):
            pass

    def _read(self) -> None:
        assert self._pieces is not None
        for piece in self._pieces:
            self.text += piece
            self._between_tokens()
            for throttle in self._throttles:
                throttle.tick(self.text)


def sentence(error: Exception) -> str:
    """Return an error's message in one line, after the type's name if it isn't mixoff's."""
    words = " ".join(str(error).split())
    if isinstance(error, MixoffError):
        return words
    truncated = words if len(words) <= 300 else f"{words[:300]} ..."
    return f"{type(error).__name__}: {truncated}" if words else f"{type(error).__name__}."
