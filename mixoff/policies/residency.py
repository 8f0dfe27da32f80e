"""One layer's residents under one demand after another. Knows experts; nothing of tensors."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from mixoff.policies.admission import Ranking, admit, replace_residents, shrink
from mixoff.policies.base import Policy
from mixoff.policies.usage import Array, Usage


@dataclass(frozen=True)
class Decision:
    """What a demand does to one layer: hits and misses, both ascending, and what is evicted."""

    hits: tuple[int, ...]
    misses: tuple[int, ...]
    evictions: tuple[tuple[int, int | None], ...]  # (expert let in, victim), one for each of them


class Residency:
    """One layer's residents, and which of them is evicted when another expert needs its slot.

    Parameters
    ----------
    num_experts
        Experts of the layer.
    num_slots
        How many may be resident.
    policy
        Ranks the residents when one must be evicted.
    layer
        Number of the layer.

    Raises
    ------
    ConfigError
        If the policy can't rank experts in a live cache.
    """

    def __init__(self, num_experts: int, num_slots: int, policy: Policy, layer: int = 0) -> None:
        self.usage = Usage.unseen(num_experts, layer)
        self._policy = policy
        self._slots = np.array([num_slots])
        self._resident = np.zeros(num_experts, bool)
        self._start()
        self._ranking = Ranking(policy, self.usage, self._resident, self._slots)
        with np.errstate(all="ignore"):  # such as count / clock, 0 / 0 before the first demand
            self._ranking.scores()

    def _start(self) -> None:
        """Make the experts with the highest numbers resident, the lowest used the longest ago."""
        experts = len(self._resident)
        starters = np.arange(experts) >= experts - self.num_slots
        self._resident[:] = starters
        for stamps in (self.usage.last_used, self.usage.entered):
            np.copyto(stamps, np.arange(experts), where=starters)

    @property
    def num_slots(self) -> int:
        """How many experts may be resident."""
        return int(self._slots[0])

    @property
    def residents(self) -> frozenset[int]:
        """The experts that are resident now."""
        return frozenset(np.flatnonzero(self._resident).tolist())

    @residents.setter
    def residents(self, experts: Iterable[int]) -> None:
        wanted = np.zeros_like(self._resident)
        wanted[list(experts)] = True
        replace_residents(self._resident[None], wanted[None], self._ranking)

    def missed(self, experts: Iterable[int]) -> tuple[int, ...]:
        """Return the experts of a demand that would miss, ascending, and decide nothing."""
        return tuple(sorted(set(experts) - self.residents))

    def demand(self, experts: Iterable[int], computed: Collection[int] = ()) -> Decision:
        """Decide a demand: an expert counts once, however many tokens chose it.

        Hits are noted as used before misses, as the predecessor's cache did.

        Parameters
        ----------
        computed
            Misses that are computed in host memory: they count as used, but aren't let in, so that
            nothing is evicted for them.
        """
        experts = sorted({*map(int, experts)})
        resident = self._resident.tolist()
        if all(resident[expert] for expert in experts) and not self._ranking.has_memory:
            self.usage.touch_residents(experts)
            return Decision(tuple(experts), (), ())
        needed = np.zeros_like(self._resident)
        needed[experts] = True
        missed = needed > self._resident
        hits = needed & self._resident
        entering = missed
        if computed:
            entering = missed.copy()
            entering[list(computed)] = False
        self.usage.touch(needed, entering)
        self._ranking.demanded(hits, entering)
        hit, miss = np.flatnonzero(hits).tolist(), np.flatnonzero(missed).tolist()
        evictions = self._let_in(needed, entering) if len(miss) > len(computed) else ()
        return Decision(tuple(hit), tuple(miss), evictions)

    def _let_in(self, needed: Array, entering: Array) -> tuple[tuple[int, int | None], ...]:
        """Let experts in, and return each with the victim whose slot it gets."""
        before = self._resident.copy()
        rounds = admit(
            self._resident[None],
            needed[None],
            entering[None],
            scores=self._ranking.rows(),
            slots=self._slots,
            bypass=self._policy.bypass,
            ranking=self._ranking if self._ranking.has_memory else None,
        )
        try:
            return tuple(
                (int(newcomer[0]), None if victim[0] < 0 else int(victim[0]))
                for _, newcomer, victim in rounds
            )
        except BaseException:  # of the policy, between two rounds: nothing will be fetched
            self._resident[:] = before
            raise

    def resize(self, num_slots: int) -> tuple[int, ...]:
        """Change the number of slots and return the residents that are evicted, first to last."""
        self._slots[:] = num_slots
        evicted = shrink(self._resident[None], self._slots, self._ranking)
        return tuple(int(victims[0]) for _, victims in evicted)
