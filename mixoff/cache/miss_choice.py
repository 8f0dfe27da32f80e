"""Which misses are computed in host memory, where their records lie. Knows seconds and counts.

As in Fiddler (arXiv 2402.07033) and KTransformers, an expert that is computed in host memory stays
there, and no resident is evicted for it: it is computed so that its bytes need not move. To fetch
it afterwards, for the next time, would fill the link with as many bytes as fetching it at once, and
other fetches would wait. So residents change where fetching is cheaper anyway: in a prompt, whose
experts many tokens choose.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from mixoff.config import Miss

_WINDOW = 9  # the last times of a kind, of which the median counts
_TRIALS = 3  # times of a kind that are enough to trust; the first one may compile kernels
_RETRY = 256  # fetched misses of one token after which one is computed: the CPU may be free again


@dataclass(frozen=True)
class Candidate:
    """A miss that may be computed: its expert, bytes to fetch, and tokens that chose it."""

    expert: int
    nbytes: int
    tokens: int


@dataclass
class _Times:
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    count: int = 0

    def add(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.count += 1

    @property
    def median(self) -> float:
        return median(self.seconds)


class MissChooser:
    """Chooses for each miss in host memory whether it is computed there or fetched.

    "auto" weighs a demand's candidates, those of few tokens first. Computed, a miss ends after
    those that are computed before it; fetched, after the bytes that are on the link already; what
    ends sooner is chosen. Times are medians of the last ones measured. An expert is expected to
    take no longer for some tokens than for more, and for more at most in proportion. As long as too
    few times are known, one expert of one token is computed in each demand, and others are fetched.

    Parameters
    ----------
    miss
        "fetch", "compute" or "auto", as in `mixoff.OffloadConfig`.
    """

    def __init__(self, miss: Miss) -> None:
        self.miss = miss
        self._link = _Times()  # seconds a byte
        self._cpu: dict[int, _Times] = {}  # seconds of an expert, by its number of tokens
        self._fetched = 0  # misses of one token since the last one was computed

    def computed(self, candidates: Iterable[Candidate], queued: int = 0) -> frozenset[int]:
        """Return the experts to compute.

        Parameters
        ----------
        candidates
            A demand's misses whose records are in host memory.
        queued
            Bytes that the link has to move before them.
        """
        if self.miss == "fetch":
            return frozenset()
        if self.miss == "compute":
            return frozenset(candidate.expert for candidate in candidates)
        ordered = sorted(candidates, key=lambda candidate: candidate.tokens)
        trial = self._trial(ordered)
        return frozenset(trial) if trial is not None else self._cheaper(ordered, queued)

    def note_fetched(self, nbytes: int, seconds: float) -> None:
        """Note how long a record was on the link."""
        if nbytes:
            self._link.add(seconds / nbytes)

    def note_computed(self, tokens: int, seconds: float) -> None:
        """Note how long an expert was computed for so many tokens."""
        self._cpu.setdefault(tokens, _Times()).add(seconds)
        if tokens == 1:
            self._fetched = 0

    def _trial(self, ordered: list[Candidate]) -> list[int] | None:
        """Return the experts to compute so that a time is learned; None if enough is known."""
        is_known = self._cpu.get(1, _Times()).count >= _TRIALS
        if is_known and self._link.count and self._fetched < _RETRY:
            return None
        first = [c.expert for c in ordered[:1] if c.tokens == 1]
        return [] if is_known and not self._link.count else first

    def _cheaper(self, ordered: list[Candidate], queued: int) -> frozenset[int]:
        """Return the experts whose computing ends before their fetch would."""
        link_s, cpu_s, computed = queued * self._link.median, 0.0, set()
        for candidate in ordered:
            fetched_s = link_s + candidate.nbytes * self._link.median
            computed_s = cpu_s + self._expected(candidate.tokens)
            if computed_s < fetched_s:
                cpu_s = computed_s
                computed.add(candidate.expert)
            else:
                link_s = fetched_s
                self._fetched += candidate.tokens == 1
        return frozenset(computed)

    def _expected(self, tokens: int) -> float:
        """Return the seconds that computing an expert is expected to take."""
        return min(times.median * max(1, tokens / known) for known, times in self._cpu.items())
