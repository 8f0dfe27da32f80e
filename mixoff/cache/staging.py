"""Records on their way to a demand, asked for by it or guessed ahead. Knows no residents.

A guess is copied into a buffer that belongs to no layer and stays there until it is adopted by a
demand or its buffer is needed for something else, so it costs no resident its slot.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns

from mixoff.tiers.buffers import Buffer, Pool
from mixoff.tiers.mover import Fetch, Mover
from mixoff.tiers.queue import Ticket
from mixoff.tiers.record import Key
from mixoff.trace.events import Copy, Guess, Observer, Outcome


@dataclass
class InFlight:
    """A record on its way into a buffer, or in it."""

    fetch: Fetch
    ticket: Ticket | None  # None if the record was there already
    layers_ahead: int = 0  # of a guess
    is_stale: bool = False  # whether a demand of its layer had no use for it
    start_ns: int = field(default_factory=perf_counter_ns)

    @property
    def is_ready(self) -> bool:
        """Whether nobody has to wait for it, unless it failed."""
        return self.ticket is None or self.ticket.ended


def fetch_into(
    buffer: Buffer,
    key: Key,
    mover: Mover,
    observers: Sequence[Observer],
    *,
    layers_ahead: int = 0,
) -> InFlight:
    """Begin to fetch a record; it is a guess if it is some layers ahead."""
    fetch = Fetch(key, buffer)
    steps = _watched(fetch, mover, observers, guess=layers_ahead > 0)
    ticket = mover.transfers.submit(steps, guess=layers_ahead > 0)
    return InFlight(fetch, ticket, layers_ahead)


def _watched(
    fetch: Fetch, mover: Mover, observers: Sequence[Observer], *, guess: bool
) -> Iterator[object]:
    """Fetch, and tell observers when it is done."""
    start_ns = perf_counter_ns()
    yield from mover.fetch(fetch)
    if observers:
        duration_ns = perf_counter_ns() - start_ns
        copy = Copy(
            *fetch.key, fetch.tier, "device", fetch.nbytes, start_ns, duration_ns, guess, fetch.span
        )
        for observer in observers:
            observer.copy(copy)


class Staging:
    """The guesses of demands to come, the oldest first.

    Parameters
    ----------
    mover
        Fetches records.
    pool
        Where buffers come from and go to.
    observers
        Are told of copies and of what became of guesses.
    """

    def __init__(self, mover: Mover, pool: Pool, observers: Sequence[Observer]) -> None:
        self._mover = mover
        self._pool = pool
        self._observers = observers
        self._guesses: dict[Key, InFlight] = {}
        self.outcomes: dict[Outcome, int] = {"used": 0, "late": 0, "wasted": 0}
        self.bytes_wasted = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._guesses

    def guess(self, key: Key, layers_ahead: int) -> bool:
        """Begin to fetch a record ahead of its demand; False if there is no buffer for it."""
        while (buffer := self._pool.take()) is None:
            if not self.give_up_one(is_stale=True):
                return False
        self._guesses[key] = fetch_into(
            buffer, key, self._mover, self._observers, layers_ahead=layers_ahead
        )
        return True

    def adopt(self, key: Key) -> InFlight | None:
        """Return the guess of a record that is demanded now, unless there is none or it failed."""
        coming = self._guesses.pop(key, None)
        if coming is None or coming.ticket is None:
            return None
        if coming.ticket.ended and not coming.ticket.done:
            self._drop(coming)
            return None
        outcome: Outcome = "used" if coming.ticket.done else "late"
        coming.ticket.promote()
        self._tell(coming, outcome)
        return coming

    def left(self, key: Key, nbytes: int) -> int:
        """Return how many of a record's bytes are still to come: all, unless it is guessed."""
        coming = self._guesses.get(key)
        return nbytes if coming is None else nbytes - coming.fetch.nbytes

    def pass_by(self, layer: int) -> None:
        """Note that a layer's demand had no use for the guesses left, and drop those under way."""
        for key in [key for key in self._guesses if key[0] == layer]:
            coming = self._guesses[key]
            coming.is_stale = True
            if not coming.is_ready:
                self._drop(self._guesses.pop(key))

    def give_up_one(self, *, is_stale: bool = False) -> bool:
        """Give a guess's buffer back to the pool, at once or when its copy has stopped.

        A guess whose demand has passed by goes first, the oldest of them; with `is_stale` no
        other goes. Of the others the last one goes first: its demand is the farthest.
        """
        stale = next((key for key, coming in self._guesses.items() if coming.is_stale), None)
        if stale is None and (is_stale or not self._guesses):
            return False
        key = next(reversed(self._guesses)) if stale is None else stale
        self._drop(self._guesses.pop(key))
        return True

    def drop_all(self) -> None:
        """Give up all guesses."""
        while self.give_up_one():
            pass

    def tell_open(self, observer: Observer) -> None:
        """Tell an observer of the guesses whose fate isn't known yet."""
        for coming in self._guesses.values():
            observer.guess(_guess(coming, "open"))

    def _drop(self, coming: InFlight) -> None:
        assert coming.ticket is not None  # guesses are fetched
        coming.ticket.cancel()
        self._tell(coming, "wasted")
        self.bytes_wasted += coming.fetch.nbytes
        self._pool.give(coming.fetch.buffer, after=coming.ticket)

    def _tell(self, coming: InFlight, outcome: Outcome) -> None:
        self.outcomes[outcome] += 1
        for observer in self._observers:
            observer.guess(_guess(coming, outcome))


def _guess(coming: InFlight, outcome: Outcome) -> Guess:
    fetch = coming.fetch
    return Guess(
        *fetch.key,
        coming.layers_ahead,
        coming.start_ns,
        perf_counter_ns(),
        fetch.nbytes,
        outcome,
    )
