"""Transfers in a queue, run by threads beside compute. Knows order and threads; no bytes.

A transfer is an iterator that does one chunk a step; it ends when the iterator does. Threads take
steps from one queue: demands before guesses, the older first. Between two steps a transfer can be
overtaken, promoted or cancelled. A thread that waits for a queued transfer does its steps itself,
so that it never waits for a worker thread that is busy or has ended.
"""

import threading
from collections.abc import Iterator
from copy import copy
from enum import Enum
from itertools import count

from mixoff.errors import MixoffError

THREADS = 1  # workers of a link: several would share its one bandwidth


class State(Enum):
    """The states of a transfer; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ENDS = (State.DONE, State.FAILED, State.CANCELLED)


class Ticket:
    """A transfer that was submitted."""

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
        """Drop the transfer: at once if it is queued, after its current step if it is running."""
        self._transfers._cancel(self)

    def settle(self) -> None:
        """Return when the transfer has ended, in whichever final state.

        The calling thread does its steps whenever no other thread is inside one.
        """
        self._transfers._settle(self)

    def wait(self) -> None:
        """Return when the transfer has moved all its bytes.

        The calling thread does its steps whenever no other thread is inside one.

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
        # A raised error's traceback holds the frames of the waiting thread, and these hold the
        # ticket. Kept here, it would keep all of them, and the buffers that they use, until
        # garbage is collected: so a copy without a traceback stays for the next wait.
        error, self.error = self.error, copy(self.error)
        try:
            raise error
        finally:
            del error


class Transfers:
    """A queue of transfers and the threads that run them.

    Parameters
    ----------
    threads
        How many worker threads; with 0 a transfer is run by `step`, or by a thread that waits.
    """

    def __init__(self, threads: int = THREADS) -> None:
        self.max_threads = threads
        self._threads: list[threading.Thread] = []
        # Guards all that follows, and the state of every ticket. Steps run without it, so that
        # submitting never waits for a chunk. A cancelled transfer's clean-up runs with it: locks
        # that clean-up takes (such as `HostStore`'s) come after this one, and code that holds one
        # of them may not call a ticket. It is reentrant, since a clean-up or a garbage collection
        # that runs with it may close this queue.
        self._changed = threading.Condition()
        self._queue: list[Ticket] = []  # as short as there are buffers to move bytes into
        self._orders = count()
        self._running: list[Ticket] = []  # that a thread is inside a step of, or about to be
        self._closed = False

    @property
    def has_work(self) -> bool:
        """Whether a transfer is queued or running."""
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
        """Do one step of the first transfer in the queue; False if the queue is empty."""
        with self._changed:
            ticket = self._take_first()
        if ticket is not None:
            self._step(ticket)
        return ticket is not None

    def close(self) -> None:
        """Cancel what is queued and end the threads; closing again does nothing."""
        with self._changed:
            self._closed = True
            while (ticket := self._take_first()) is not None:
                self._running.remove(ticket)
                self._end(ticket, State.CANCELLED)
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():  # a transfer may close its own queue
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
                is_queued = ticket in self._queue
                if is_queued:
                    self._take(ticket)
                elif not ticket.ended:  # checked with the lock, or its end could be missed
                    self._changed.wait()
            if is_queued:
                self._step(ticket)

    def _work(self) -> None:
        while True:
            with self._changed:
                # A link has one bandwidth: while a waiting thread runs a transfer itself, no
                # worker thread starts another one, which would slow the first down.
                while (
                    len(self._running) >= self.max_threads or (ticket := self._take_first()) is None
                ):
                    if self._closed:
                        return
                    self._changed.wait()
            self._step(ticket)

    def _take_first(self) -> Ticket | None:
        """Take the ticket that is first in the order of steps, if any is queued."""
        ticket = min(self._queue, key=lambda ticket: (ticket.guess, ticket._order), default=None)
        if ticket is not None:
            self._take(ticket)
        return ticket

    def _take(self, ticket: Ticket) -> None:
        self._queue.remove(ticket)
        ticket.state = State.RUNNING
        self._running.append(ticket)

    def _step(self, ticket: Ticket) -> None:
        """Do a taken transfer's next step, and queue it again unless that ended it."""
        state, error = State.FAILED, None
        try:
            next(ticket._steps)
            state = State.QUEUED
        except StopIteration:
            state = State.DONE
        except Exception as failure:  # any error of a transfer is raised where it is waited for
            error = failure
        finally:  # after a KeyboardInterrupt, too, or the ticket would stay running for ever
            with self._changed:
                self._running.remove(ticket)
                ticket.error, error = error, None  # no local may hold the error, as in `wait`
                if state is State.QUEUED and not (ticket._cancelled or self._closed):
                    ticket.state = state
                    self._queue.append(ticket)
                else:
                    self._end(ticket, State.CANCELLED if state is State.QUEUED else state)
                self._changed.notify_all()

    def _end(self, ticket: Ticket, state: State) -> None:
        """Clean up after a transfer, then give its ticket a final state.

        In this order: a ticket that has ended says that its buffers may be used again.
        """
        close = getattr(ticket._steps, "close", None)
        try:
            if close is not None:
                close()
        except Exception as failure:  # a failed clean-up, too, is raised where it is waited for
            state, ticket.error = State.FAILED, failure
        finally:
            ticket.state = state
            self._changed.notify_all()
