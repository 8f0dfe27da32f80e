"""What an expert cache must decide, in lists and dictionaries."""

from collections import Counter
from itertools import combinations

MASK = 2**64 - 1


class LRUOracle:
    """One layer's residents, the least recently used first."""

    def __init__(self, experts: int, slots: int) -> None:
        self.slots = slots
        self.residents = dict.fromkeys(range(experts - slots, experts))
        self.hits = self.misses = 0

    def demand(self, needed: list[int]) -> list[int]:
        """Return the experts in the order of their use: hits first, each part ascending."""
        wanted = sorted(set(needed))
        hits = [expert for expert in wanted if expert in self.residents]
        misses = [expert for expert in wanted if expert not in self.residents]
        self.hits += len(hits)
        self.misses += len(misses)
        for expert in hits:
            self.residents[expert] = self.residents.pop(expert)  # None, and at the end now
        return hits + misses

    def load(self, expert: int, wanted: list[int]) -> int | None:
        """Make an expert resident, and return the victim: not a wanted one unless all are."""
        victim = None
        if self.slots == 0:
            return expert
        if len(self.residents) == self.slots:
            unwanted = [resident for resident in self.residents if resident not in wanted]
            del self.residents[victim := (unwanted or [*self.residents])[0]]
        self.residents[expert] = None
        return victim


class Oracle:
    """One layer's residents; the victim is the minimum over all of them."""

    bypass = False

    def __init__(self, experts: int, slots: int, layer: int = 0) -> None:
        self.slots, self.layer = slots, layer
        self.residents = set(range(experts - slots, experts))
        self.used = {expert: expert - experts for expert in self.residents}  # before time 0
        self.entered = dict(self.used)
        self.count = Counter()
        self.demands = self.time = 0

    def worth(self, expert: int) -> object:
        """Return what is compared: the resident with the lowest worth is evicted."""
        raise NotImplementedError

    def demand(self, needed: list[int]) -> tuple[list[int], list[int], list[tuple]]:
        """Return hits, misses, and pairs of an expert that is let in and its victim."""
        wanted = {*needed}
        hits, misses = sorted(wanted & self.residents), sorted(wanted - self.residents)
        self.demands += 1
        for expert in hits + misses:
            self.count[expert] += 1
            self.used[expert] = self.time = self.time + 1
            if expert in misses:
                self.entered[expert] = self.time
        return hits, misses, [(expert, self.admit(expert, wanted)) for expert in misses]

    def admit(self, expert: int, wanted: set[int]) -> int | None:
        if len(self.residents) < self.slots:
            self.residents.add(expert)
            return None
        candidates = (
            self.residents | {expert} if self.bypass or not self.slots else self.residents - wanted
        )
        victim = min(candidates or self.residents, key=lambda e: (self.worth(e), e))
        self.residents.add(expert)
        self.residents.remove(victim)
        return victim


class OracleLRU(Oracle):
    def worth(self, expert: int) -> object:
        return self.used[expert]


class OracleLFU(Oracle):
    def worth(self, expert: int) -> object:
        return self.count[expert], self.used[expert]


class OracleFIFO(Oracle):
    def worth(self, expert: int) -> object:
        return self.entered[expert]


class OracleStatic(Oracle):
    bypass = True

    def worth(self, expert: int) -> object:
        return expert


class OracleRandom(Oracle):
    def worth(self, expert: int) -> object:
        """Return the SplitMix64 hash of demand, layer and expert, for the seed 0."""
        state = ((self.demands << 32) + expert + (self.layer << 20)) & MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
        return (state ^ state >> 31) >> 11


ORACLES = {
    "lru": OracleLRU,
    "lfu": OracleLFU,
    "fifo": OracleFIFO,
    "static": OracleStatic,
    "random": OracleRandom,
}


def most_hits(demands: list[list[int]], experts: int, slots: int, *, bypass: bool) -> int:
    """Return the most hits that any choice of victims gives, by trying all of them.

    Where experts must be admitted, no demand may be larger than the slots.
    """
    best = {frozenset(range(experts - slots, experts)): 0}  # residents: hits so far
    for needed in map(frozenset, demands):
        after: dict[frozenset[int], int] = {}
        for residents, hits in best.items():
            hits += len(needed & residents)
            must_stay = frozenset() if bypass else needed
            may_stay = (residents | needed) - must_stay
            for kept in combinations(sorted(may_stay), slots - len(must_stay)):
                stay = must_stay | {*kept}
                after[stay] = max(after.get(stay, 0), hits)
        best = after
    return max(best.values())
