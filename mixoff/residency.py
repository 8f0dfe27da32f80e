"""Which expert is in which slot of one layer. Knows experts and slots; nothing of tensors."""

from collections.abc import Collection, Iterable

import numpy as np

from mixoff.policies import Policy, Usage


class Residency:
    """One layer's slots: who is resident, and who leaves when another comes.

    Parameters
    ----------
    num_experts
        Experts of the layer.
    num_slots
        Slots of the layer, all free at first.
    policy
        Ranks the residents when one must leave.
    """

    def __init__(self, num_experts: int, num_slots: int, policy: Policy) -> None:
        self._policy = policy
        self._usage = Usage.unseen(num_experts)
        self._clock = 0
        self._slots: dict[int, int] = {}
        self._free = list(reversed(range(num_slots)))

    @property
    def residents(self) -> frozenset[int]:
        """The experts in a slot now."""
        return frozenset(self._slots)

    def __contains__(self, expert: int) -> bool:
        return expert in self._slots

    def slot(self, expert: int) -> int:
        """Return the slot of a resident expert."""
        return self._slots[expert]

    def demand(self, experts: Iterable[int]) -> tuple[list[int], list[int]]:
        """Split a demand into hits and misses, ascending, and note that they were asked for.

        An expert counts once, however many tokens chose it. Hits are touched before misses, as
        the predecessor's cache did.
        """
        wanted = sorted(set(experts))
        hits = [expert for expert in wanted if expert in self._slots]
        misses = [expert for expert in wanted if expert not in self._slots]
        for expert in (*hits, *misses):
            self._touch(expert)
            self._usage.count[expert] += 1
        return hits, misses

    def vacate(self, demand: Collection[int] = ()) -> tuple[int, int | None]:
        """Make sure that a slot is free and return (slot, victim); no victim if one was free.

        The victim is no expert of the current demand unless no other resident is left. The slot
        stays free until `occupy`, so that a read that failed in between leaves nobody's bytes
        behind under anybody's name.
        """
        if self._free:
            return self._free[-1], None
        residents = np.array(sorted(self._slots))
        others = residents[~np.isin(residents, list(demand))]
        candidates = others if others.size else residents
        scores = self._policy.scores(self._usage)[candidates]
        victim = int(candidates[np.argmin(scores)])
        self._free.append(self._slots.pop(victim))
        return self._free[-1], victim

    def occupy(self, slot: int, expert: int) -> None:
        """Make an expert, whose bytes are in the free slot now, resident."""
        self._free.remove(slot)
        self._slots[expert] = slot

    def start_with(self, experts: Iterable[int]) -> None:
        """Note experts as used in this order, before the first demand and without counting them."""
        for expert in experts:
            self._touch(expert)

    def _touch(self, expert: int) -> None:
        self._usage.last_used[expert] = self._clock
        self._clock += 1
