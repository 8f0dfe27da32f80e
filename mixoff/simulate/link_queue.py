"""A link on paper: copies take their turns in made-up time. Knows seconds; nothing of bytes.

One copy is on the link at a time, a piece after the other. Between two pieces what is demanded
overtakes what is only guessed, as in `mixoff.tiers.queue`. Times only ever grow: who asks for
something at a time has told all that happened before.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(eq=False)
class Copy:
    """A copy that was asked for."""

    pieces: deque[float]  # seconds of each that is left
    guess: bool
    order: int
    asked_s: float
    ended_s: float | None = None


class Traffic:
    """The copies that wait for a link, and when it is free."""

    def __init__(self) -> None:
        self._queue: list[Copy] = []
        self._free_s = 0.0
        self._asked = 0

    def ask(self, at_s: float, pieces: Iterable[float], *, guess: bool = False) -> Copy:
        """Ask for a copy that takes its pieces' seconds once it is its turn."""
        self.advance(at_s)
        copy = Copy(deque(pieces), guess, self._asked, at_s)
        self._asked += 1
        self._queue.append(copy)
        return copy

    def advance(self, to_s: float) -> None:
        """Let pass what begins before a time."""
        while self._queue and self._free_s < to_s:
            self._do_piece()

    def promote(self, copy: Copy) -> None:
        """Make a guess a demand."""
        copy.guess = False

    def drop(self, copy: Copy) -> None:
        """Do no more pieces of a copy."""
        if copy in self._queue:
            self._queue.remove(copy)

    def finish(self, copy: Copy) -> float:
        """Let pass what comes before a copy's end, and return when that is."""
        while copy.ended_s is None:
            self._do_piece()
        return copy.ended_s

    def _do_piece(self) -> None:
        copy = min(self._queue, key=lambda copy: (copy.guess, copy.order))
        self._free_s = max(self._free_s, copy.asked_s) + copy.pieces.popleft()
        if not copy.pieces:
            copy.ended_s = self._free_s
            self._queue.remove(copy)
