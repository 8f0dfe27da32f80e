"""Which misses are computed where their records lie. Knows seconds and counts; moves nothing.

As in Fiddler (arXiv 2402.07033) and KTransformers, an expert that is computed in host memory stays
there, and nobody leaves a slot for it: not to move its bytes is what computing it is for. To bring
it in afterwards, for the next time, would fill the link with as much as fetching does, and fetches
would wait behind it. So residents change where fetching is cheaper anyway, which is a prompt, whose
experts many tokens choose.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

Miss = Literal["fetch", "compute", "auto"]

_LAST = 9  # measured times of a kind that count; the median of them is what it takes
_TRIALS = 3  # that a kind has to have been tried for; the first one may compile kernels
_AGAIN = 256  # one of so many fetched misses is computed, in case the CPU has become free


@dataclass(frozen=True)
class Candidate:
    """A miss that may be computed: whose, how large, and how many tokens chose it."""

    expert: int
    nbytes: int
    tokens: int


@dataclass
class _Times:
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_LAST))
    count: int = 0

    def add(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.count += 1

    @property
    def usual(self) -> float:
        return median(self.seconds)


class MissChooser:
    """Says of each miss in host memory whether to compute it there or to fetch it.

    "auto" weighs a demand's candidates, those of few tokens first: computed, a miss ends after
    those that are computed before it; fetched, after what is on the link already. What ends sooner
    is done. Times are medians of the last ones; for so many tokens an expert takes no longer than
    for more, and at most in proportion to what it takes for fewer. As long as there are too few
    times, an expert of one token is computed, one a demand, and others are fetched.

    Parameters
    ----------
    miss
        "fetch", "compute" or "auto", as `mixoff.OffloadConfig` has them.
    """

    def __init__(self, miss: Miss) -> None:
        self.miss = miss
        self._link = _Times()  # seconds a byte
        self._cpu: dict[int, _Times] = {}  # seconds of an expert, by its tokens
        self._fetched = 0  # misses of one token, since the last one was computed

    def computed(self, candidates: Iterable[Candidate], queued: int = 0) -> frozenset[int]:
        """Return the experts to compute.

        Parameters
        ----------
        candidates
            A demand's misses whose records lie in host memory.
        queued
            Bytes that the link has to move before.
        """
        if self.miss == "fetch":
            return frozenset()
        if self.miss == "compute":
            return frozenset(candidate.expert for candidate in candidates)
        ordered = sorted(candidates, key=lambda candidate: candidate.tokens)
        tried = self._tried(ordered)
        return frozenset(tried) if tried is not None else self._cheaper(ordered, queued)

    def note_fetched(self, nbytes: int, seconds: float) -> None:
        """Note how long a record was on the link."""
        if nbytes:
            self._link.add(seconds / nbytes)

    def note_computed(self, tokens: int, seconds: float) -> None:
        """Note how long an expert was computed for so many tokens."""
        self._cpu.setdefault(tokens, _Times()).add(seconds)
        if tokens == 1:
            self._fetched = 0

    def _tried(self, ordered: list[Candidate]) -> list[int] | None:
        """Return whom to compute to learn what it takes; None if enough is known."""
        known = self._cpu.get(1, _Times()).count >= _TRIALS
        if known and self._link.count and self._fetched < _AGAIN:
            return None
        first = [c.expert for c in ordered[:1] if c.tokens == 1]
        return [] if known and not self._link.count else first

    def _cheaper(self, ordered: list[Candidate], queued: int) -> frozenset[int]:
        link_s, cpu_s, computed = queued * self._link.usual, 0.0, set()
        for candidate in ordered:
            there_s = link_s + candidate.nbytes * self._link.usual
            done_s = cpu_s + self._expected(candidate.tokens)
            if done_s < there_s:
                cpu_s = done_s
                computed.add(candidate.expert)
            else:
                link_s = there_s
                self._fetched += candidate.tokens == 1
        return frozenset(computed)

    def _expected(self, tokens: int) -> float:
        """Return what computing an expert is expected to take, in seconds."""
        return min(times.usual * max(1, tokens / known) for known, times in self._cpu.items())
