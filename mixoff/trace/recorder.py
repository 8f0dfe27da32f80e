"""The observer that makes a trace of a cache's events. Knows events; nothing of the cache."""

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

import numpy as np

from mixoff._version import __version__
from mixoff.trace.events import Copy, Demand, Guess, Missed, Snapshot, Tier
from mixoff.trace.schema import (
    COMPUTED,
    COPY,
    CUT,
    DEMAND,
    EVENT,
    EVICTION,
    HIT,
    MISS,
    NOTHING,
    OUTCOMES,
    PREFETCH,
    REASONS,
    TIERS,
    Event,
    Rows,
    state_dtype,
)
from mixoff.trace.trace import Trace


class Recorder:
    """An observer that keeps events in lists, and makes a trace of them at the end.

    A new step begins with a demand whose layer isn't later than that of the demand before.

    Parameters
    ----------
    clock
        The clock of the events' times, in nanoseconds.
    """

    def __init__(self, *, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._began_at = datetime.now(timezone.utc)
        self._began_ns = clock()
        self._demands: list[Demand] = []
        self._copies: list[Copy] = []
        self._guesses: list[Guess] = []
        self._snapshots: list[tuple[int, Snapshot]] = []  # with the number of demands before it

    def demand(self, demand: Demand) -> None:
        """Note a demand that has ended."""
        self._demands.append(demand)

    def copy(self, copy: Copy) -> None:
        """Note a copy that has ended."""
        self._copies.append(copy)

    def guess(self, guess: Guess) -> None:
        """Note the outcome of a guess."""
        self._guesses.append(guess)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Note a layer's state."""
        self._snapshots.append((len(self._demands), snapshot))

    def finish(self, *, provenance: Mapping[str, Any], into: Trace | None = None) -> Trace:
        """Return a trace of all events; only here are times read from devices.

        Parameters
        ----------
        provenance
            Plain JSON values. Replays need ``num_experts``, ``num_layers``, ``record_nbytes`` (a
            list, one for each layer) and ``policy`` (`mixoff.policies.policy_name`); the rest is
            for people. The version of mixoff and the time of recording are added.
        into
            The trace to fill, by default a new one. Its provenance keeps the keys that aren't
            among these.
        """
        trace = Trace() if into is None else into
        trace.events = _events(self._demands, self._copies, self._guesses)
        trace.events["start_ns"] -= self._began_ns
        trace.states = _states(self._demands, self._snapshots, provenance["num_experts"])
        trace.provenance.update(provenance)
        trace.provenance["mixoff"] = __version__
        trace.provenance["recorded_at"] = self._began_at.isoformat(timespec="seconds")
        return trace


def _events(demands: list[Demand], copies: list[Copy], guesses: list[Guess]) -> Rows:
    steps = _step_numbers(demands)
    rows = [row for d, step in zip(demands, steps, strict=True) for row in _demand_rows(d, step)]
    begun = len(rows)
    rows += map(_copy_row, copies)
    rows += map(_guess_row, guesses)
    events = np.array(rows, dtype=EVENT)  # [R]
    _set_steps(events[:begun], events[begun:])
    return events


def _step_numbers(demands: list[Demand]) -> list[int]:
    layers = np.array([demand.layer for demand in demands], np.int64)  # [N]
    steps: list[int] = np.cumsum(np.diff(layers, prepend=-1) <= 0).tolist()
    return steps


def _demand_rows(demand: Demand, step: int) -> Iterator[Event]:
    """Yield a demand's row, then those of its hits, misses and evictions."""
    arrived = {missed.expert: _times(missed) for missed in demand.arrivals}
    plain = Event(DEMAND, step, demand.tokens, demand.layer, start_ns=demand.start_ns)
    yield plain._replace(
        outcome=NOTHING if demand.complete else CUT,
        duration_ns=demand.end_ns - demand.start_ns,
        wait_ns=sum(wait_ns for _, wait_ns in arrived.values()),
    )
    for expert in demand.hits:
        yield plain._replace(kind=HIT, expert=expert, tier=_tier("device"))
    for missed in demand.arrivals:
        start_ns, wait_ns = arrived[missed.expert]
        yield plain._replace(
            kind=MISS,
            expert=missed.expert,
            tier=_tier(missed.tier),
            outcome=NOTHING if missed.computed_ns is None else COMPUTED,
            nbytes=missed.nbytes,
            start_ns=start_ns,
            duration_ns=wait_ns + (missed.computed_ns or 0),
            wait_ns=wait_ns,
        )
    for expert in demand.misses:
        if expert not in arrived:
            yield plain._replace(kind=MISS, expert=expert)
    for expert, victim in demand.evictions:
        if victim not in (None, expert):  # a policy with bypass may let the expert pass by
            yield plain._replace(kind=EVICTION, expert=victim, tier=_tier("device"))


def _times(missed: Missed) -> tuple[int, int]:
    return missed.span() if missed.span else (missed.start_ns, missed.wait_ns)


def _tier(tier: Tier) -> int:
    return TIERS.index(tier)


def _copy_row(copy: Copy) -> Event:
    start_ns, duration_ns = copy.span() if copy.span else (copy.start_ns, copy.duration_ns)
    return Event(
        COPY,
        step=0,
        tokens=0,
        layer=copy.layer,
        expert=copy.expert,
        tier=_tier(copy.source),
        target=_tier(copy.target),
        guess=copy.guess,
        nbytes=copy.nbytes,
        start_ns=start_ns,
        duration_ns=duration_ns,
    )


def _guess_row(guess: Guess) -> Event:
    return Event(
        PREFETCH,
        step=0,
        tokens=0,
        layer=guess.layer,
        expert=guess.expert,
        outcome=OUTCOMES.index(guess.outcome),
        ahead=guess.layers_ahead,
        nbytes=guess.nbytes,
        start_ns=guess.start_ns,
        duration_ns=guess.end_ns - guess.start_ns,
    )


def _set_steps(demanded: Rows, copied: Rows) -> None:
    """Set the step of each copy and prefetch: the last one that began before it."""
    heads = demanded[demanded["kind"] == DEMAND]
    firsts = heads[np.diff(heads["step"], prepend=NOTHING) > 0]  # of each step
    if not len(firsts):
        return
    step = np.searchsorted(firsts["start_ns"], copied["start_ns"], side="right") - 1
    copied["step"] = np.maximum(step, 0)
    copied["tokens"] = firsts["tokens"][copied["step"]]


def _states(demands: list[Demand], snapshots: list[tuple[int, Snapshot]], num_experts: int) -> Rows:
    layers = np.array([demand.layer for demand in demands], np.int64)
    states = np.zeros(len(snapshots), state_dtype(num_experts))
    for state, (before, snapshot) in zip(states, snapshots, strict=True):
        state["layer"] = snapshot.layer
        state["position"] = np.count_nonzero(layers[:before] == snapshot.layer)
        state["reason"] = REASONS.index(snapshot.reason)
        state["slots"] = snapshot.slots
        state["resident"][list(snapshot.residents)] = True
        for name in ("last_used", "entered", "count"):
            state[name] = getattr(snapshot.usage, name)
        state["clock"] = snapshot.usage.clock[0]
    return states
