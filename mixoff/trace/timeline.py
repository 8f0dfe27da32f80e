"""A trace as spans of time in lanes: compute, waits, and the copies meanwhile.

Knows times; nothing of how they are drawn.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mixoff.trace.frames import PREFILL, phase_of
from mixoff.trace.schema import COMPUTED, COPY, DEMAND, MISS, NOTHING, TIERS, Rows

COMPUTE, WAIT = "compute", "waiting for experts"
ON_HOST = "computed in host memory"
NON_EXPERT, EXPERTS = "non-expert", "experts"


class Span(NamedTuple):
    """An interval of time in a lane."""

    lane: str  # COMPUTE, WAIT, ON_HOST, or the tiers of copies: "disk to device"
    label: str  # NON_EXPERT, EXPERTS, or the expert: "expert 3"
    start_ns: int
    duration_ns: int
    row: int  # its event; NOTHING for the non-expert parameters

    @property
    def end_ns(self) -> int:
        """The time of its end."""
        return self.start_ns + self.duration_ns


def spans(events: Rows) -> list[Span]:
    """Return spans, lane by lane, none of which overlap in a lane.

    Compute is experts while a demand is served without waiting, and non-expert from one demand to
    the next: attention, norms, gates and the head, but not from a reply's end to the next prompt.
    Experts that were computed in host memory are repeated in lanes of their own. Copies between the
    same tiers at the same time are in numbered lanes.
    """
    computed: list[Span] = []
    waited: list[Span] = []
    on_host: list[Span] = []
    for at, misses in _demands(events):
        computed += _non_expert_before(events, at, computed)
        waits = [_wait(events, row) for row in misses if events[row]["wait_ns"]]
        computed += _between(events, at, waits)
        waited += waits
        on_host += [_on_host(events, r) for r in misses if events[r]["outcome"] == COMPUTED]
    return [*computed, *_apart(waited), *_apart(on_host), *_apart(_copies(events))]


def _demands(events: Rows) -> Iterator[tuple[int, list[int]]]:
    """Yield each demand's row, and those of its misses."""
    heads = np.flatnonzero(events["kind"] == DEMAND)
    misses = np.flatnonzero(events["kind"] == MISS)
    firsts = np.searchsorted(misses, np.append(heads, len(events)))
    for head, first, end in zip(heads.tolist(), firsts[:-1], firsts[1:], strict=True):
        yield head, misses[first:end].tolist()


def _non_expert_before(events: Rows, at: int, computed: list[Span]) -> Iterator[Span]:
    if not computed:
        return
    end, before, start = computed[-1].end_ns, computed[-1].row, int(events[at]["start_ns"])
    phases = phase_of(events[[before, at]]).tolist()
    same_reply = phases[0] == PREFILL or phases[1] != PREFILL
    if same_reply and start > end:
        yield Span(COMPUTE, NON_EXPERT, end, start - end, NOTHING)


def _wait(events: Rows, row: int) -> Span:
    miss = events[row]
    return Span(WAIT, f"expert {miss['expert']}", int(miss["start_ns"]), int(miss["wait_ns"]), row)


def _on_host(events: Rows, row: int) -> Span:
    miss = events[row]
    start = int(miss["start_ns"] + miss["wait_ns"])
    duration = int(miss["duration_ns"] - miss["wait_ns"])
    return Span(ON_HOST, f"expert {miss['expert']}", start, duration, row)


def _between(events: Rows, at: int, waits: list[Span]) -> Iterator[Span]:
    """Yield the parts of a demand without waits, and at least its end, however short."""
    cursor = int(events[at]["start_ns"])
    end = cursor + int(events[at]["duration_ns"])
    for wait in sorted(waits, key=lambda span: span.start_ns):
        if wait.start_ns > cursor:
            yield Span(COMPUTE, EXPERTS, cursor, wait.start_ns - cursor, at)
        cursor = max(cursor, wait.end_ns)
    yield Span(COMPUTE, EXPERTS, cursor, max(0, end - cursor), at)


def _copies(events: Rows) -> list[Span]:
    rows = np.flatnonzero(events["kind"] == COPY)
    return [
        Span(
            f"{TIERS[copy['tier']]} to {TIERS[copy['target']]}",
            f"expert {copy['expert']}",
            int(copy["start_ns"]),
            int(copy["duration_ns"]),
            row,
        )
        for row, copy in zip(rows.tolist(), events[rows], strict=True)
    ]


def _apart(overlapping: list[Span]) -> list[Span]:
    """Return spans in order; a span that overlaps another in its lane is in a numbered lane."""
    placed: dict[str, list[Span]] = {}
    for span in sorted(overlapping, key=lambda span: (span.lane, span.start_ns)):
        number = 1
        while (lane := span.lane + f" {number}" * (number > 1)) in placed:
            if placed[lane][-1].end_ns <= span.start_ns:
                break
            number += 1
        placed.setdefault(lane, []).append(span._replace(lane=lane))
    return [span for lane in placed.values() for span in lane]
