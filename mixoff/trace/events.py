"""What a cache tells those who watch it. Knows experts, tiers and times; nothing of tensors.

Times are nanoseconds of `time.perf_counter_ns`. A time that only a device knows is read later, when
a recording ends, through `span`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from mixoff.policies.usage import Usage

Tier = Literal["device", "staged", "host", "disk"]
Outcome = Literal["used", "late", "wasted", "open"]
Reason = Literal["start", "resize", "interrupted"]  # why a layer's state is told
Span = Callable[[], tuple[int, int]]  # gives (start_ns, duration_ns)


class Missed(NamedTuple):
    """A demanded expert that wasn't resident, and how it came."""

    expert: int
    tier: Tier  # where it was found: in a staging buffer, in host memory, or on disk
    nbytes: int  # that were moved for it: none if host memory gave its own buffer away
    start_ns: int  # when compute turned to it
    wait_ns: int  # how long compute then waited
    span: Span | None = None  # the wait as the device saw it
    computed_ns: int | None = None  # how long it was computed where it lay; None: it was fetched


class Demand(NamedTuple):
    """What a layer needed in one step, and what came of it; told when the demand has ended."""

    layer: int
    tokens: int
    start_ns: int
    end_ns: int
    hits: tuple[int, ...]
    misses: tuple[int, ...]
    arrivals: tuple[Missed, ...]  # the misses that came, in their order
    evictions: tuple[tuple[int, int | None], ...]  # (expert let in, victim), as decided
    complete: bool  # False if an error or the consumer ended it early


class Copy(NamedTuple):
    """A record that was moved from one tier to another, whole; told by the thread that did it."""

    layer: int
    expert: int
    source: Tier
    target: Tier
    nbytes: int
    start_ns: int
    duration_ns: int
    guess: bool  # whether nobody had demanded it when it began
    span: Span | None = None  # start and duration as the device saw them


class Guess(NamedTuple):
    """An expert that was copied ahead of its demand, told when its fate is known.

    Used: there when it was demanded. Late: demanded before the copy had ended. Wasted: dropped
    before anybody demanded it, copied or not. Open: none of these yet when the recording ended.
    """

    layer: int
    expert: int
    layers_ahead: int
    start_ns: int  # when it was guessed
    end_ns: int
    nbytes: int  # that were copied for it
    outcome: Outcome


class Snapshot(NamedTuple):
    """A layer's state where a replay begins anew: at the start, a resize, or a demand cut off.

    It holds before the demands that are told after it.
    """

    layer: int
    reason: Reason
    slots: int
    residents: frozenset[int]
    usage: Usage  # a copy


class Observer(Protocol):
    """Is told what happens, by the thread that it happens in; must not be slow."""

    def demand(self, demand: Demand) -> None:
        """Note a demand that has ended."""

    def copy(self, copy: Copy) -> None:
        """Note a copy that has ended."""

    def guess(self, guess: Guess) -> None:
        """Note what became of a guess."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """Note a layer's state."""
