"""The thread that reads a reply, and has it painted by the clock. Knows no widgets."""

import threading
from collections.abc import Callable, Iterator
from time import monotonic

from mixoff.errors import MixoffError

TEXT_PER_SECOND = 15  # writes of the growing reply: smooth to an eye, light on a browser
FIGURES_PER_SECOND = 4

_LOOK_S = 0.1  # an interrupt is seen between two looks, whatever the system


class Beat:
    """Lets a painter paint no more often than so many times a second.

    Parameters
    ----------
    paint
        What is to be done.
    clock
        Tells the time in seconds.
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
        """Paint the text so far if it is time to."""
        if (now := self._clock()) >= self._next_s:
            self._next_s = now + self._gap_s
            self._paint(text)


class Worker(threading.Thread):
    """Reads one reply to its end, however it ends, and then tells so.

    Parameters
    ----------
    pieces
        The reply as it comes; reading it is what runs the model.
    between_tokens
        What is called when a piece has come, while the model waits.
    beats
        Who paints the text so far.
    on_end
        What is called at the end, in this thread.

    Attributes
    ----------
    text
        What was read.
    problem
        A sentence about what went wrong; None if nothing did. The error itself isn't kept, since
        it would keep the model.
    """

    def __init__(
        self,
        pieces: Iterator[str],
        between_tokens: Callable[[], None],
        beats: tuple[Beat, ...],
        on_end: Callable[["Worker"], None],
    ) -> None:
        super().__init__(name="mixoff-reply", daemon=True)
        self.text = ""
        self._has_ended = threading.Event()
        self.problem: str | None = None
        self._pieces: Iterator[str] | None = pieces
        self._between_tokens, self._beats, self._on_end = between_tokens, beats, on_end

    def run(self) -> None:
        """Read the reply."""
        try:
            self._read()
        except KeyboardInterrupt:
            self.problem = "The reply was interrupted."
        except Exception as error:  # the box must outlive whatever a model raises
            self.problem = sentence(error)
        finally:
            self._pieces = None  # an iterator that was left ends here
            try:
                self._on_end(self)
            finally:
                self._has_ended.set()

    def wait(self) -> None:
        """Wait until all is told; an interrupt passes through, and one may wait again.

        (An interrupted `join` takes a thread that still runs for one that has ended.)
        """
        while not self._has_ended.wait(_LOOK_S):
            pass

    def _read(self) -> None:
        assert self._pieces is not None
        for piece in self._pieces:
            self.text += piece
            self._between_tokens()
            for beat in self._beats:
                beat.tick(self.text)


def sentence(error: Exception) -> str:
    """Return what an error says in one line; one that mixoff didn't word begins with its name."""
    words = " ".join(str(error).split())
    if isinstance(error, MixoffError):
        return words
    truncated = words if len(words) <= 300 else f"{words[:300]} ..."
    return f"{type(error).__name__}: {truncated}" if words else f"{type(error).__name__}."
