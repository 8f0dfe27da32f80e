"""Which experts are resident, and who leaves when others come. Knows experts; nothing of tensors.

`admit` decides for any number of layers and cache sizes at once: a live cache calls it for one
layer, a replay for all, so that both decide alike.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mixoff.policies import Array, Policy, Usage

_HIGHEST = np.finfo(np.float64).max


def admit(
    resident: Array,
    needed: Array,
    missed: Array,
    *,
    scores: Array,
    slots: Array,
    bypass: bool | Array,
) -> Iterator[tuple[Array, Array, Array]]:
    """Let each row's missed experts in, ascending, and yield (rows, newcomers, victims) in turns.

    Where a row has no free slot a resident leaves: the lowest score outside the demand, or with
    none left there, the lowest score of all. A row that may bypass weighs the newcomer and the
    demand's other experts like any resident, so that the newcomer itself may be the one to go.

    Parameters
    ----------
    resident
        [N, E] bool, changed in place.
    needed, missed
        [N, E] bool: the demand, and what of it isn't resident.
    scores
        [N, E]: the lowest leaves first.
    slots
        [N]: how many experts may be resident.
    bypass
        Whether a row may bypass: one for all, or [N].

    Yields
    ------
    tuple
        Of each turn: the rows with a newcomer, the newcomers, and the victims, -1 for none.
    """
    scores = np.fmin(scores, _HIGHEST)  # [N, E]; infinity is for who can't leave
    bypasses = np.broadcast_to(bypass, slots.shape)  # [N]
    candidates = resident & (bypasses[:, None] | ~needed)
    leaving = np.where(candidates, scores, np.inf)
    waiting = missed.copy()
    free = slots - np.count_nonzero(resident, axis=1)
    while True:
        first = waiting.argmax(axis=1)  # [N]
        rows = np.flatnonzero(waiting[np.arange(len(first)), first])
        if not rows.size:
            return
        newcomers = first[rows]
        waiting[rows, newcomers] = False
        resident[rows, newcomers] = True
        weighed = bypasses[rows]
        leaving[rows[weighed], newcomers[weighed]] = scores[rows[weighed], newcomers[weighed]]
        yield rows, newcomers, _evict(resident, leaving, scores, rows, newcomers, free)


def _evict(
    resident: Array, leaving: Array, scores: Array, rows: Array, newcomers: Array, free: Array
) -> Array:
    """Make room where there is none, and return each row's victim, -1 for none."""
    ranked = leaving[rows]  # [R, E]
    victims = ranked.argmin(axis=1)
    if (none_left := np.isposinf(ranked[np.arange(len(rows)), victims])).any():
        # No resident outside the demand: one of the demand's own goes, but not the newcomer.
        own = np.where(resident[rows[none_left]], scores[rows[none_left]], np.inf)
        own[np.arange(len(own)), newcomers[none_left]] = np.inf
        victims[none_left] = own.argmin(axis=1)
    if (has_room := free[rows] > 0).any():
        free[rows[has_room]] -= 1
        victims[has_room] = -1
    full = victims >= 0
    resident[rows[full], victims[full]] = False
    leaving[rows[full], victims[full]] = np.inf
    return victims


@dataclass(frozen=True)
class Decision:
    """What a demand does to one layer: hits and misses, both ascending, and who leaves for whom."""

    hits: tuple[int, ...]
    misses: tuple[int, ...]
    evictions: tuple[tuple[int, int | None], ...]  # (missed expert, victim), one for each miss


class Residency:
    """One layer's residents, and who leaves when another comes.

    Parameters
    ----------
    num_experts
        Experts of the layer.
    num_slots
        How many may be resident.
    policy
        Ranks the residents when one must leave.
    layer
        Number of the layer.
    """

    def __init__(self, num_experts: int, num_slots: int, policy: Policy, layer: int = 0) -> None:
        self.usage = Usage.unseen(num_experts, layer)
        self._policy = policy
        self._slots = np.array([num_slots])
        self._resident = np.zeros(num_experts, bool)
        self._start()

    def _start(self) -> None:
        """Let the experts with the highest numbers in, the lowest of them used the longest ago."""
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
        self._resident[:] = False
        self._resident[list(experts)] = True

    def demand(self, experts: Iterable[int]) -> Decision:
        """Decide a demand: an expert counts once, however many tokens chose it.

        Hits are noted as used before misses, as the predecessor's cache did.
        """
        needed = np.zeros_like(self._resident)
        needed[list(experts)] = True
        missed = needed & ~self._resident
        hits = np.flatnonzero(needed & self._resident)
        self.usage.touch(needed, missed)
        turns = admit(
            self._resident[None],
            needed[None],
            missed[None],
            scores=np.asarray(self._policy.scores(self.usage))[None],
            slots=self._slots,
            bypass=self._policy.bypass,
        )
        evictions = [
            (int(newcomer[0]), None if victim[0] < 0 else int(victim[0]))
            for _, newcomer, victim in turns
        ]
        misses = tuple(np.flatnonzero(missed).tolist())
        return Decision(tuple(hits.tolist()), misses, tuple(evictions))

    def resize(self, num_slots: int) -> tuple[int, ...]:
        """Change the number of slots and return the residents that had to leave, first to last."""
        scores = np.where(self._resident, self._policy.scores(self.usage), np.inf)
        surplus = max(0, np.count_nonzero(self._resident) - num_slots)
        victims = np.argsort(scores, kind="stable")[:surplus]
        self._resident[victims] = False
        self._slots[:] = num_slots
        return tuple(victims.tolist())
