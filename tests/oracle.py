"""What an expert cache should do, in a dictionary."""


class LRUOracle:
    """One layer's residents, the least recently used first."""

    def __init__(self, experts: int, slots: int) -> None:
        self.slots = slots
        self.residents = dict.fromkeys(range(experts - slots, experts))
        self.hits = self.misses = 0

    def demand(self, needed: list[int]) -> list[int]:
        """Return the experts in the order in which they come: hits first, each part ascending."""
        wanted = sorted(set(needed))
        hits = [expert for expert in wanted if expert in self.residents]
        misses = [expert for expert in wanted if expert not in self.residents]
        self.hits += len(hits)
        self.misses += len(misses)
        for expert in hits:
            self.residents[expert] = self.residents.pop(expert)  # None, and at the end now
        return hits + misses

    def load(self, expert: int, wanted: list[int]) -> None:
        """Make an expert resident; who leaves was not wanted, unless all were."""
        if len(self.residents) == self.slots:
            unwanted = [resident for resident in self.residents if resident not in wanted]
            del self.residents[(unwanted or [*self.residents])[0]]
        self.residents[expert] = None
