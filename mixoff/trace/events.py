"""The events that a cache reports to its observers. Knows experts, tiers and times; no tensors.

Times are nanoseconds of `time.perf_counter_ns`. A time that a device measured is read later, when a
recording ends, through `span`, so that no event waits for the device.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from mixoff.policies.usage import Usage

Tier = Literal["device", "staged", "host", "disk"]
Outcome = Literal["used", "late", "wasted", "open"]
Reason = Literal["start", "resize", "interrupted"]  # why a layer's state is reported
Span = Callable[[], tuple[int, int]]  # gives (start_ns, duration_ns)


class Missed(NamedTuple):
    """A demanded expert that wasn't resident, and how it was served."""

    expert: int
    tier: Tier  # where its record was: in a staging buffer, in host memory, or on disk
    nbytes: int  # that were moved for it: none if host memory handed over its own buffer
    start_ns: int  # when compute needed it
    wait_ns: int  # how long compute then waited
    span: Span | None = None  # the wait as the device measured it
    computed_ns: int | None = None  # how long it was computed in host memory; None: it was fetched


class Demand(NamedTuple):
    """What a layer needed in one step, and how it was served; reported when it has ended."""

    layer: int
    tokens: int
    start_ns: int
    end_ns: int
    hits: tuple[int, ...]
    misses: tuple[int, ...]
    arrivals: tuple[Missed, ...]  # the misses that were served, in that order
    evictions: tuple[tuple[int, int | None], ...]  # (expert let in, victim), as decided
    complete: bool  # False if an error or the consumer ended it early


class Copy(NamedTuple):
    """A whole record that was copied between two tiers; reported by the thread that did it."""

    layer: int
    expert: int
    source: Tier
    target: Tier
    nbytes: int
    start_ns: int
    duration_ns: int
    guess: bool  # whether it began before any demand of the expert
    span: Span | None = None  # start and duration as the device measured them


class Guess(NamedTuple):
    """An expert that was copied ahead of its demand, reported when its outcome is known.

    Used: ready when it was demanded. Late: demanded before the copy had ended. Wasted: dropped
    before any demand, copied or not. Open: none of these yet when the recording ended.
    """

    layer: int
    expert: int
    layers_ahead: int
    start_ns: int  # when it was guessed
    end_ns: int
    nbytes: int  # that were copied for it
    outcome: Outcome


class Snapshot(NamedTuple):
    """A layer's state where a replay begins anew: the start, a resize, an interrupted demand.

    It is the state before the demands that are reported after it.
    """

    layer: int
    reason: Reason
    slots: int
    residents: frozenset[int]
    usage: Usage  # a copy


class Observer(Protocol):
    """Receives events, in the threads that they happen in, which it must not slow down."""

    def demand(self, demand: Demand) -> None:
        """Note a demand that has ended."""

    def copy(self, copy: Copy) -> None:
        """Note a copy that has ended."""

    def guess(self, guess: Guess) -> None:
        """Note the outcome of a guess."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """Note a layer's state."""
