"""Work that moves bytes, done by a thread beside compute. Knows order and threads; no bytes.

A transfer is an iterator that does one chunk a step, and whose last step ends it. Threads take
steps from one queue: what is demanded before what is only guessed, the older first. Between two
steps a transfer can be overtaken, promoted or cancelled. Who waits for one that no thread has in
hand does its steps himself, so that nobody waits for a thread that is busy, or gone.
"""

import threading
from collections.abc import Iterator
from copy import copy
from enum import Enum
from itertools import count

from mixoff.errors import MixoffError


class State(Enum):
    """Where a transfer is in its life; the last three are its end."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ENDS = (State.DONE, State.FAILED, State.CANCELLED)


class Ticket:
    """A transfer that was asked for."""

    def __init__(
        self, transfers: "Transfers", steps: Iterator[object], order: int, *, guess: bool
    ) -> None:
        self.state = State.QUEUED
        self.error: Exception | None = None
        self.guess = guess
        self._transfers = transfers
        self._steps = steps
        self._order = order
        self._cancelled = False

    @property
    def ended(self) -> bool:
        """Whether it will move no more bytes."""
        return self.state in _ENDS

    @property
    def done(self) -> bool:
        """Whether it moved all its bytes."""
        return self.state is State.DONE

    def promote(self) -> None:
        """Make a guess a demand: it overtakes all guesses."""
        self._transfers._promote(self)

    def cancel(self) -> None:
        """Drop the transfer: at once if it is queued, after its present step if it is running."""
        self._transfers._cancel(self)

    def settle(self) -> None:
        """Return when the transfer has ended, however it did.

        Its steps are done here as long as no thread has it in hand.
        """
        self._transfers._settle(self)

    def wait(self) -> None:
        """Return when the transfer has moved all its bytes.

        Its steps are done here as long as no thread has it in hand, as `settle` does them.

        Raises
        ------
        Exception
            What made it fail.
        MixoffError
            If it was cancelled or interrupted.
        """
        self.settle()
        if self.done:
            return
        if self.error is None:
            how = "cancelled" if self.state is State.CANCELLED else "interrupted"
            raise MixoffError(f"a transfer was {how}: ask for it again.")
        # The error's traceback holds who waited, who holds the ticket: kept here, it would keep
        # all of them until garbage is collected, with the buffers that they use.
        error, self.error = self.error, copy(self.error)
        try:
            raise error
        finally:
            del error


class Transfers:
    """A queue of transfers and the threads that do them.

    Parameters
    ----------
    threads
        How many; with 0 a transfer is done by who waits for it, or by `step`.
    """

    def __init__(self, threads: int = 1) -> None:
        self.max_threads = threads
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._queue: list[Ticket] = []  # as short as there are buffers to move bytes into
        self._orders = count()
        self._running = 0  # transfers that somebody has in hand
        self._closed = False

    @property
    def under_way(self) -> bool:
        """Whether there is anything to do, or being done."""
        return bool(self._running or self._queue)

    def submit(self, steps: Iterator[object], *, guess: bool = False) -> Ticket:
        """Queue a transfer and return its ticket at once.

        Raises
        ------
        MixoffError
            After `close`.
        """
        with self._changed:
            if self._closed:
                raise MixoffError("transfers were closed: build the model again.")
            ticket = Ticket(self, steps, next(self._orders), guess=guess)
            self._queue.append(ticket)
            self._changed.notify_all()
            if len(self._threads) < self.max_threads:
                thread = threading.Thread(target=self._work, name="mixoff-transfers", daemon=True)
                self._threads.append(thread)
                thread.start()
        return ticket

    def step(self) -> bool:
        """Do one step of the first transfer in the queue; False if there is none."""
        with self._changed:
            ticket = self._first()
        if ticket is not None:
            self._step(ticket)
        return ticket is not None

    def close(self) -> None:
        """Cancel what is queued and end the threads; closing again does nothing."""
        with self._changed:
            self._closed = True
            while (ticket := self._first()) is not None:
                self._end(ticket, State.CANCELLED)
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._threads.clear()

    def _promote(self, ticket: Ticket) -> None:
        with self._changed:
            ticket.guess = False

    def _cancel(self, ticket: Ticket) -> None:
        with self._changed:
            ticket._cancelled = True
            if ticket in self._queue:
                self._queue.remove(ticket)
                self._end(ticket, State.CANCELLED)

    def _settle(self, ticket: Ticket) -> None:
        while not ticket.ended:
            with self._changed:
                mine = ticket in self._queue
                if mine:
                    self._take(ticket)
                elif not ticket.ended:
                    self._changed.wait()
            if mine:
                self._step(ticket)

    def _work(self) -> None:
        while True:
            with self._changed:
                # A link has one bandwidth: what is waited for isn't to share it with the next.
                while self._running >= self.max_threads or (ticket := self._first()) is None:
                    if self._closed:
                        return
                    self._changed.wait()
            self._step(ticket)

    def _first(self) -> Ticket | None:
        """Take the ticket whose turn it is."""
        ticket = min(self._queue, key=lambda ticket: (ticket.guess, ticket._order), default=None)
        if ticket is not None:
            self._take(ticket)
        return ticket

    def _take(self, ticket: Ticket) -> None:
        self._queue.remove(ticket)
        ticket.state = State.RUNNING
        self._running += 1

    def _step(self, ticket: Ticket) -> None:
        """Do a taken transfer's next step, and queue it again unless that ended it."""
        state, error = State.FAILED, None
        try:
            next(ticket._steps)
            state = State.QUEUED
        except StopIteration:
            state = State.DONE
        except Exception as failure:  # whatever it is, it belongs to who waits for this transfer
            error = failure
        finally:  # an interrupt of a waiting thread, too, must not leave the ticket running
            with self._changed:
                self._running -= 1
                ticket.error, error = error, None  # or its traceback would hold it, as in `wait`
                if state is State.QUEUED and not (ticket._cancelled or self._closed):
                    ticket.state = state
                    self._queue.append(ticket)
                else:
                    self._end(ticket, State.CANCELLED if state is State.QUEUED else state)
                self._changed.notify_all()

    def _end(self, ticket: Ticket, state: State) -> None:
        close = getattr(ticket._steps, "close", None)
        try:
            if close is not None:
                close()
        except Exception as failure:  # it, too, belongs to who waits, and ends the transfer
            state, ticket.error = State.FAILED, failure
        finally:
            ticket.state = state
            self._changed.notify_all()
