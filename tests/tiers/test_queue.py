"""Transfers end, each once and in order, in whichever thread, under any sequence of requests."""

import contextlib
import gc
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import permutations, product

import pytest

from mixoff.errors import MixoffError
from mixoff.tiers.queue import State, Ticket, Transfers


class Work:
    """A transfer's chunks, with a note of what was done and whether it was closed."""

    def __init__(self, name: str, chunks: int = 1, log: list[str] | None = None) -> None:
        self.name, self.chunks = name, chunks
        self.log = [] if log is None else log
        self.done = 0
        self.closed = self.is_running = self.overlapped = False

    def __iter__(self) -> Iterator[None]:
        return self

    def __next__(self) -> None:
        self.overlapped |= self.is_running
        self.is_running = True
        assert not self.closed, "a step after the end"
        try:
            if self.done == self.chunks:
                raise StopIteration
            self.act()
            self.done += 1
            self.log.append(self.name)
        finally:
            self.is_running = False

    def act(self) -> None:
        """Do what a test needs in a chunk."""

    def close(self) -> None:
        self.closed = True


class Acting(Work):
    """Chunks that call a function."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__("acting")
        self.act = act  # type: ignore[method-assign]


def within(seconds: float, *actions: Callable[[], object]) -> None:
    """Run actions in a thread each, and fail if one of them doesn't return in time, or raises."""
    failures: list[BaseException] = []

    def guarded(action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=[a], daemon=True) for a in actions]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
        assert not thread.is_alive(), "a thread waits for ever"
    if failures:
        raise failures[0]


def run_all(transfers: Transfers) -> None:
    while transfers.step():
        pass


def workers() -> int:
    return sum(thread.name == "mixoff-transfers" for thread in threading.enumerate())


def boom() -> None:
    raise OSError("boom")


def test_demands_run_before_guesses_and_older_before_younger():
    transfers, log = Transfers(0), []
    for name in ("guess 1", "demand 1", "guess 2", "demand 2"):
        transfers.submit(Work(name, log=log), guess=name.startswith("guess"))
    run_all(transfers)
    assert log == ["demand 1", "demand 2", "guess 1", "guess 2"]


def test_a_demand_overtakes_a_guess_between_two_of_its_chunks():
    transfers, log = Transfers(0), []
    transfers.submit(Work("guess", 3, log), guess=True)
    transfers.step()
    transfers.submit(Work("demand", 2, log))
    run_all(transfers)
    assert log == ["guess", "demand", "demand", "guess", "guess"]


def test_a_promoted_guess_overtakes_all_guesses_and_younger_demands():
    transfers, log = Transfers(0), []
    transfers.submit(Work("first", 2, log), guess=True)
    second = transfers.submit(Work("second", 2, log), guess=True)
    transfers.submit(Work("demand", 2, log))
    second.promote()
    run_all(transfers)
    assert log == ["second"] * 2 + ["demand"] * 2 + ["first"] * 2


def test_a_transfer_that_is_cancelled_before_its_first_step_does_nothing():
    transfers, work = Transfers(0), Work("guess", 3)
    ticket = transfers.submit(work, guess=True)
    ticket.cancel()
    assert ticket.state is State.CANCELLED
    assert not transfers.step()
    assert (work.done, work.closed) == (0, True)


def test_a_transfer_that_is_cancelled_between_chunks_does_no_other():
    transfers, work = Transfers(0), Work("guess", 3)
    ticket = transfers.submit(work, guess=True)
    transfers.step()
    ticket.cancel()
    run_all(transfers)
    assert (work.done, work.closed, ticket.state) == (1, True, State.CANCELLED)


def test_a_transfer_that_is_cancelled_inside_a_chunk_ends_with_it():
    transfers = Transfers(0)
    work = Acting(lambda: ticket.cancel())
    work.chunks = 3
    ticket = transfers.submit(work)
    run_all(transfers)
    assert (work.done, work.closed, ticket.state) == (1, True, State.CANCELLED)


def test_cancelling_what_has_ended_changes_nothing():
    transfers = Transfers(0)
    ticket = transfers.submit(Work("demand"))
    run_all(transfers)
    ticket.cancel()
    assert ticket.state is State.DONE


def test_a_generator_that_is_cancelled_cleans_up_before_the_transfer_has_ended():
    transfers, states = Transfers(0), []

    def steps() -> Iterator[None]:
        try:
            while True:
                yield None
        finally:
            states.append(ticket.ended)

    ticket = transfers.submit(steps())
    transfers.step()
    ticket.cancel()
    assert (states, ticket.ended) == ([False], True)


@pytest.mark.parametrize("threads", [0, 1])
def test_a_failed_clean_up_ends_the_transfer_and_is_raised_by_wait(threads):
    transfers = Transfers(threads)

    def steps() -> Iterator[None]:
        try:
            while True:
                yield None
        finally:
            boom()

    ticket = transfers.submit(steps())
    if not threads:
        transfers.step()
    else:
        time.sleep(0.01)
    ticket.cancel()

    def wait() -> None:
        with pytest.raises(OSError, match="boom"):
            ticket.wait()

    within(5, wait)
    next_one = transfers.submit(Work("next"))
    within(5, next_one.wait)
    within(5, transfers.close)


def test_waiting_for_a_cancelled_transfer_is_an_error():
    transfers = Transfers(0)
    ticket = transfers.submit(Work("demand"))
    ticket.cancel()
    with pytest.raises(MixoffError, match="cancelled"):
        ticket.wait()
    ticket.settle()


@pytest.mark.parametrize("threads", [0, 1])
def test_the_error_of_a_failed_chunk_is_raised_in_every_waiting_thread(threads):
    transfers = Transfers(threads)
    ticket = transfers.submit(Acting(boom))

    def wait() -> None:
        with pytest.raises(OSError, match="boom"):
            ticket.wait()

    within(5, wait, wait, wait)
    within(5, wait)
    assert ticket.state is State.FAILED
    transfers.close()


@pytest.mark.parametrize("threads", [0, 1])
def test_an_error_that_was_handled_keeps_nothing_alive(threads):
    transfers = Transfers(threads)

    class Held:
        pass

    def wait() -> weakref.ref[Held]:
        held = Held()
        ticket = transfers.submit(Acting(boom))
        with contextlib.suppress(OSError):
            ticket.wait()
        return weakref.ref(held)

    gc.disable()
    try:
        assert wait()() is None
    finally:
        gc.enable()
    transfers.close()


def test_after_a_failed_transfer_the_others_are_done():
    transfers = Transfers(1)
    transfers.submit(Acting(boom))
    within(5, transfers.submit(Work("next")).wait)
    transfers.close()


def test_an_interrupt_of_a_waiting_thread_ends_the_transfer():
    transfers = Transfers(0)

    def interrupt() -> None:
        raise KeyboardInterrupt

    work = Acting(interrupt)
    ticket = transfers.submit(work)
    with pytest.raises(KeyboardInterrupt):
        ticket.wait()
    assert (ticket.state, work.closed) == (State.FAILED, True)

    def wait() -> None:
        with pytest.raises(MixoffError, match="interrupted"):
            ticket.wait()

    within(5, wait, wait)


def test_nothing_can_be_submitted_after_the_end():
    transfers = Transfers(1)
    transfers.close()
    with pytest.raises(MixoffError, match="closed"):
        transfers.submit(Work("demand"))
    assert workers() == 0


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_closing_cancels_what_is_queued_and_ends_all_threads(threads):
    transfers, began, go = Transfers(threads), threading.Semaphore(0), threading.Event()

    def block() -> None:
        began.release()
        go.wait(5)

    for _ in range(threads):
        transfers.submit(Acting(block))
        assert began.acquire(timeout=5)
    queued = [transfers.submit(Work("queued", 2), guess=True) for _ in range(5)]

    def let_go() -> None:
        while not all(ticket.ended for ticket in queued):
            time.sleep(0.001)
        go.set()

    within(5, transfers.close, let_go)
    assert {ticket.state for ticket in queued} == {State.CANCELLED}
    assert not transfers.has_work
    assert workers() == 0
    within(5, transfers.close)


def test_a_transfer_may_close_the_queue_it_is_in():
    transfers = Transfers(1)
    ticket = transfers.submit(Acting(transfers.close))
    within(5, ticket.settle, transfers.close)
    assert (ticket.ended, ticket.error) == (True, None)


def test_a_waiting_thread_does_not_wait_for_a_busy_worker():
    transfers, go = Transfers(1), threading.Event()
    busy = transfers.submit(Acting(lambda: go.wait(5)))
    within(4, transfers.submit(Work("demand")).wait)
    go.set()
    within(5, busy.wait)
    transfers.close()


class Sleepy(Work):
    """Chunks that take a little while, at random, and sometimes fail."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        super().__init__(str(seed), self.chance.randrange(6))
        self.ticket: Ticket | None = None

    def act(self) -> None:
        assert self.ticket is None or not self.ticket.ended, "a chunk after the end"
        if self.chance.random() < 0.3:
            time.sleep(self.chance.random() / 1000)
        if self.chance.random() < 0.02:
            boom()


def play(transfers: Transfers, seed: int) -> list[Sleepy]:
    """Submit, promote, cancel and wait at random; return the work."""
    chance, works = random.Random(seed), []
    for number in range(150):
        work = Sleepy(1000 * seed + number)
        ticket = transfers.submit(work, guess=chance.random() < 0.6)
        work.ticket = ticket
        works.append(work)
        earlier = chance.choice(works).ticket
        assert earlier is not None
        acts = [earlier.promote, earlier.cancel, earlier.settle, ticket.settle, int, int]
        act = chance.choice(acts)
        act()
        if earlier.ended and act == earlier.settle:
            assert not any(w.is_running for w in works if w.ticket is earlier)
    return works


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_under_random_requests_every_transfer_ends_and_is_done_once(threads):
    for seed in range(4):
        transfers, works = Transfers(threads), []
        within(
            20,
            lambda t=transfers, s=seed, w=works: w.extend(play(t, 2 * s)),
            lambda t=transfers, s=seed, w=works: w.extend(play(t, 2 * s + 1)),
        )
        for work in works:
            within(10, work.ticket.settle)
        for work in works:
            assert work.ticket.ended
            assert work.closed
            assert not work.overlapped
            assert work.done == work.chunks or work.ticket.state is not State.DONE
            assert not isinstance(work.ticket.error, AssertionError)
        within(10, transfers.close)
        assert workers() == 0


def test_closing_at_any_moment_leaves_no_thread_waiting():
    for seed in range(20):
        transfers, works = Transfers(2), [Sleepy(1000 * seed + number) for number in range(12)]
        tickets = [transfers.submit(work, guess=bool(n % 3)) for n, work in enumerate(works)]
        within(10, *[ticket.settle for ticket in tickets], transfers.close)
        assert workers() == 0
        assert all(ticket.ended for ticket in tickets)


@pytest.mark.parametrize("threads", [1, 2])
def test_no_wake_up_is_lost_in_five_thousand_rounds(threads):
    transfers = Transfers(threads)
    usual = sys.getswitchinterval()

    def rounds() -> None:
        for number in range(5000):
            ticket = transfers.submit(Work("demand", number % 3), guess=number % 2 == 0)
            if number % 5:
                ticket.promote()
            ticket.wait()
            assert ticket.done

    sys.setswitchinterval(1e-6)  # threads are switched everywhere
    try:
        within(30, rounds)
    finally:
        sys.setswitchinterval(usual)
    transfers.close()
    assert workers() == 0


ACTIONS = ("guess", "demand", "step", "step", "cancel", "wait")


@pytest.mark.parametrize("chunks", [1, 2])
def test_in_every_order_of_a_few_actions_no_demand_waits_behind_a_guess(chunks):
    orders = sorted(set(permutations(ACTIONS)))
    assert len(orders) == 360
    for order, cancelled, awaited in product(orders, ("guess", "demand"), ("guess", "demand")):
        check_order(order, cancelled, awaited, chunks)


def check_order(order: tuple[str, ...], cancelled: str, awaited: str, chunks: int) -> None:
    transfers, log = Transfers(0), []
    works = {name: Work(name, chunks, log) for name in ("guess", "demand")}
    tickets: dict[str, Ticket] = {}
    for action in order:
        before = len(log)
        demand = tickets.get("demand")
        demanded = demand is not None and not demand.ended
        if action in works:
            tickets[action] = transfers.submit(works[action], guess=action == "guess")
        elif action == "step":
            transfers.step()
            assert log[before:] in ([], ["demand"] if demanded else ["guess"])
        elif action == "cancel" and cancelled in tickets:
            tickets[cancelled].cancel()
            assert tickets[cancelled].ended
        elif action == "wait" and awaited in tickets:
            tickets[awaited].settle()
            assert tickets[awaited].ended
            assert set(log[before:]) <= {awaited}
    run_all(transfers)
    for name, work in works.items():
        assert tickets[name].ended
        assert work.closed
        assert work.done == chunks or tickets[name].state is State.CANCELLED
        assert log.count(name) == work.done


class Chunky(Work):
    """Chunks that take a moment, the first of which frees the thread that was held."""

    def __init__(self, name: str, log: list[str], release: threading.Event) -> None:
        super().__init__(name, chunks=20, log=log)
        self.release = release

    def act(self) -> None:
        self.release.set()
        time.sleep(0.001)


def test_an_awaited_transfer_shares_the_link_with_no_other():
    transfers, log = Transfers(threads=1), []
    held, release = threading.Event(), threading.Event()
    transfers.submit(Acting(lambda: (held.set(), release.wait(10))))
    held.wait(10)  # the worker is busy, so that the waiting thread does the first chunk
    first, second = (transfers.submit(Chunky(name, log, release)) for name in "AB")
    within(20, first.wait)
    second.wait()
    assert "".join(log) == "A" * 20 + "B" * 20
    transfers.close()
