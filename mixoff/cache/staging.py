"""Records in flight to a demand, requested by it or guessed ahead of it. Knows no residents.

A guess is copied into a buffer that belongs to no layer. It stays there until a demand takes it
over or its buffer is needed for something else, so it never costs a resident its slot.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter_ns

from mixoff.cache.observers import Observers
from mixoff.tiers.buffers import Buffer, Pool
from mixoff.tiers.mover import Fetch, Mover
from mixoff.tiers.queue import Ticket
from mixoff.tiers.record import Key
from mixoff.trace.events import Copy, Guess, Outcome


@dataclass
class InFlight:
    """A record that is being copied into a buffer, or has been."""

    fetch: Fetch
    ticket: Ticket | None  # None for a kept record, whose buffer is taken as it is
    layers_ahead: int = 0  # of a guess
    is_stale: bool = False  # a guess that a demand of its layer didn't use
    start_ns: int = field(default_factory=perf_counter_ns)

    @property
    def is_ready(self) -> bool:
        """Whether it takes no waiting: it is copied, or has failed."""
        return self.ticket is None or self.ticket.ended


def fetch_into(
    buffer: Buffer, key: Key, mover: Mover, observers: Observers, *, layers_ahead: int = 0
) -> InFlight:
    """Begin to fetch a record; with some layers ahead it is a guess."""
    fetch = Fetch(key, buffer)
    steps = _observed(fetch, mover, observers, guess=layers_ahead > 0)
    ticket = mover.transfers.submit(steps, guess=layers_ahead > 0)
    return InFlight(fetch, ticket, layers_ahead)


def _observed(fetch: Fetch, mover: Mover, observers: Observers, *, guess: bool) -> Iterator[object]:
    """Do the steps of a fetch, then notify observers of the copy, in the thread that did them.

    A transfer thread holds this generator: it refers to the mover and the observers, and may not
    refer to the cache, which would then never be collected.
    """
    start_ns = perf_counter_ns()
    yield from mover.fetch(fetch)
    if observers.attached:
        duration_ns = perf_counter_ns() - start_ns
        observers.notify_copy(
            Copy(
                *fetch.key,
                fetch.tier,
                "device",
                fetch.nbytes,
                start_ns,
                duration_ns,
                guess,
                fetch.span,
            )
        )


class Staging:
    """The guesses of future demands, the oldest first.

    Parameters
    ----------
    mover
        Fetches records.
    pool
        Has the buffers.
    observers
        Are notified of copies and of what became of guesses.
    """

    def __init__(self, mover: Mover, pool: Pool, observers: Observers) -> None:
        self._mover = mover
        self._pool = pool
        self._observers = observers
        self._guesses: dict[Key, InFlight] = {}
        self.outcomes: dict[Outcome, int] = {"used": 0, "late": 0, "wasted": 0}
        self.bytes_wasted = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._guesses

    def guess(self, key: Key, layers_ahead: int) -> bool:
        """Begin to fetch a record ahead of its demand; False if no buffer is free for it."""
        while (buffer := self._pool.take()) is None:
            if not self.release_one(stale_only=True):
                return False
        self._guesses[key] = fetch_into(
            buffer, key, self._mover, self._observers, layers_ahead=layers_ahead
        )
        return True

    def adopt(self, key: Key) -> InFlight | None:
        """Return the guess of a record that is demanded now, or None if it has none or it failed.

        The guess is the demand's from now on.
        """
        guess = self._guesses.pop(key, None)
        if guess is None or guess.ticket is None:
            return None
        if guess.ticket.ended and not guess.ticket.done:
            self._drop(guess)
            return None
        outcome: Outcome = "used" if guess.ticket.done else "late"
        guess.ticket.promote()
        self._note(guess, outcome)
        return guess

    def nbytes_missing(self, key: Key, nbytes: int) -> int:
        """Return how many of a record's bytes are still to be copied: all, unless it is guessed."""
        guess = self._guesses.get(key)
        return nbytes if guess is None else nbytes - guess.fetch.nbytes

    def mark_stale(self, layer: int) -> None:
        """Mark the guesses that a layer's demand didn't use, and drop those not copied yet."""
        for key in [key for key in self._guesses if key[0] == layer]:
            guess = self._guesses[key]
            guess.is_stale = True
            if not guess.is_ready:
                self._drop(self._guesses.pop(key))

    def release_one(self, *, stale_only: bool = False) -> bool:
        """Give a guess's buffer back to the pool; False if no guess can be dropped.

        The oldest stale guess is dropped first; with `stale_only`, no other. Without stale ones,
        the newest guess is dropped, whose demand is the farthest away.
        """
        stale = next((key for key, guess in self._guesses.items() if guess.is_stale), None)
        if stale is None and (stale_only or not self._guesses):
            return False
        key = next(reversed(self._guesses)) if stale is None else stale
        self._drop(self._guesses.pop(key))
        return True

    def drop_all(self) -> None:
        """Drop all guesses."""
        while self.release_one():
            pass

    def open_guesses(self) -> list[Guess]:
        """Return the guesses whose outcome isn't known yet, as events."""
        return [_event(guess, "open") for guess in self._guesses.values()]

    def _drop(self, guess: InFlight) -> None:
        assert guess.ticket is not None  # guesses are always fetched
        guess.ticket.cancel()
        self._note(guess, "wasted")
        self.bytes_wasted += guess.fetch.nbytes
        # A cancelled transfer may still be inside a step that writes into the buffer.
        self._pool.give(guess.fetch.buffer, after=guess.ticket)

    def _note(self, guess: InFlight, outcome: Outcome) -> None:
        self.outcomes[outcome] += 1
        if self._observers.attached:
            self._observers.notify_guess(_event(guess, outcome))


def _event(guess: InFlight, outcome: Outcome) -> Guess:
    fetch = guess.fetch
    return Guess(
        *fetch.key, guess.layers_ahead, guess.start_ns, perf_counter_ns(), fetch.nbytes, outcome
    )
