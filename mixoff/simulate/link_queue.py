"""A simulated link: copies queue for it in simulated time. Knows seconds; nothing of bytes.

The link carries one copy at a time, piece by piece. Between two pieces a demanded copy overtakes
a guessed one, as in `mixoff.tiers.queue`. Times never decrease: a copy is requested only after all
that happened before it.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(eq=False)
class QueuedCopy:
    """A copy that was requested."""

    pieces: deque[float]  # seconds of each piece that remains
    guess: bool
    order: int
    requested_s: float
    ended_s: float | None = None


class LinkQueue:
    """The copies that wait for a link, and the time at which it is free."""

    def __init__(self) -> None:
        self._queue: list[QueuedCopy] = []
        self._free_s = 0.0
        self._requested = 0  # copies

    def request(self, at_s: float, pieces: Iterable[float], *, guess: bool = False) -> QueuedCopy:
        """Add a copy to the queue, whose pieces take so many seconds, and return it."""
        self.advance(at_s)
        copy = QueuedCopy(deque(pieces), guess, self._requested, at_s)
        self._requested += 1
        self._queue.append(copy)
        return copy

    def advance(self, to_s: float) -> None:
        """Run the pieces that begin before a time."""
        while self._queue and self._free_s < to_s:
            self._run_piece()

    def promote(self, copy: QueuedCopy) -> None:
        """Make a guessed copy a demanded one, which keeps its place in the queue."""
        copy.guess = False

    def drop(self, copy: QueuedCopy) -> None:
        """Run no more pieces of a copy."""
        if copy in self._queue:
            self._queue.remove(copy)

    def finish(self, copy: QueuedCopy) -> float:
        """Run pieces until a copy ends, and return the time of its end."""
        while copy.ended_s is None:
            self._run_piece()
        return copy.ended_s

    def _run_piece(self) -> None:
        copy = min(self._queue, key=lambda copy: (copy.guess, copy.order))
        self._free_s = max(self._free_s, copy.requested_s) + copy.pieces.popleft()
        if not copy.pieces:
            copy.ended_s = self._free_s
            self._queue.remove(copy)
