"""Which experts are resident, and who leaves when others come. Knows experts; nothing of tensors.

`admit` decides for any number of layers and cache sizes at once: a live cache calls it for one
layer, a replay for all, so that both decide alike.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mixoff.policies.base import Policy
from mixoff.policies.usage import Array, Usage

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
        Whether a row may bypass: one for all, or [N]. A row without slots always does.

    Yields
    ------
    tuple
        Of each turn: the rows with a newcomer, the newcomers, and the victims, -1 for none.
    """
    rows = _rows_with_any(missed)  # [R] of those that have a newcomer still to come
    waiting = missed.take(rows, axis=0)
    bypasses = (bypass | (slots == 0)).take(rows)
    scores = np.fmin(scores.take(rows, axis=0), _HIGHEST)  # infinity is for who can't leave
    inside = resident.take(rows, axis=0)
    free = slots.take(rows) - inside @ np.ones(inside.shape[1], np.float32)  # a count, faster
    outside_demand = ~needed.take(rows, axis=0)
    leaving = np.where(inside & (outside_demand | bypasses[:, None]), scores, np.inf)
    while rows.size:
        each = np.arange(len(rows)) * scores.shape[1]  # where a row begins in a flat [R * E]
        newcomers = waiting.argmax(axis=1)
        at = each + newcomers
        waiting.reshape(-1)[at] = False
        resident[rows, newcomers] = True
        leaving.reshape(-1)[at] = np.where(bypasses, scores.take(at), np.inf)
        victims = leaving.argmin(axis=1)
        if (lowest := leaving.take(each + victims)).max() == np.inf:
            none_left = np.flatnonzero(lowest == np.inf)
            victims[none_left] = _own_victims(resident, scores, rows, newcomers, none_left)
        victims[free > 0] = -1
        free -= 1
        full = np.flatnonzero(victims >= 0)
        resident[rows.take(full), victims.take(full)] = False
        leaving.reshape(-1)[(each + victims).take(full)] = np.inf
        yield rows, newcomers, victims
        more = _rows_with_any(waiting)
        rows, waiting, bypasses, scores, leaving, free = (
            array.take(more, axis=0) for array in (rows, waiting, bypasses, scores, leaving, free)
        )


def _rows_with_any(mask: Array) -> Array:
    return np.flatnonzero(mask.take(np.arange(len(mask)) * mask.shape[1] + mask.argmax(axis=1)))


def _own_victims(
    resident: Array, scores: Array, rows: Array, newcomers: Array, places: Array
) -> Array:
    """Return who leaves where only the demand's own are left: the lowest but the newcomer."""
    ranked = np.where(resident.take(rows.take(places), axis=0), scores.take(places, axis=0), np.inf)
    ranked[np.arange(len(places)), newcomers.take(places)] = np.inf
    victims: Array = ranked.argmin(axis=1)
    return victims


@dataclass(frozen=True)
class Decision:
    """What a demand does to one layer: hits and misses, both ascending, and who leaves for whom."""

    hits: tuple[int, ...]
    misses: tuple[int, ...]
    evictions: tuple[tuple[int, int | None], ...]  # (expert let in, victim), one for each of them


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

    def missed(self, experts: Iterable[int]) -> tuple[int, ...]:
        """Return who of a demand would miss, ascending, and decide nothing."""
        return tuple(sorted(set(experts) - self.residents))

    def demand(self, experts: Iterable[int], computed: Collection[int] = ()) -> Decision:
        """Decide a demand: an expert counts once, however many tokens chose it.

        Hits are noted as used before misses, as the predecessor's cache did.

        Parameters
        ----------
        computed
            Misses that are computed where they lie: they count as used, aren't let in, and nobody
            leaves for them.
        """
        experts = sorted({*map(int, experts)})
        resident = self._resident.tolist()
        if all(resident[expert] for expert in experts):
            self.usage.touch_residents(experts)
            return Decision(tuple(experts), (), ())
        needed = np.zeros_like(self._resident)
        needed[experts] = True
        missed = needed & ~self._resident
        hits = np.flatnonzero(needed & self._resident)
        entering = missed
        if computed:
            entering = missed.copy()
            entering[list(computed)] = False
        self.usage.touch(needed, entering)
        evictions = self._let_in(needed, entering) if entering.any() else ()
        return Decision(tuple(hits.tolist()), tuple(np.flatnonzero(missed).tolist()), evictions)

    def _let_in(self, needed: Array, entering: Array) -> tuple[tuple[int, int | None], ...]:
        """Let experts in, and return them, each with who left for it."""
        turns = admit(
            self._resident[None],
            needed[None],
            entering[None],
            scores=np.asarray(self._policy.scores(self.usage))[None],
            slots=self._slots,
            bypass=self._policy.bypass,
        )
        return tuple(
            (int(newcomer[0]), None if victim[0] < 0 else int(victim[0]))
            for _, newcomer, victim in turns
        )

    def resize(self, num_slots: int) -> tuple[int, ...]:
        """Change the number of slots and return the residents that had to leave, first to last."""
        scores = np.fmin(self._policy.scores(self.usage), _HIGHEST)
        scores = np.where(self._resident, scores, np.inf)
        surplus = max(0, np.count_nonzero(self._resident) - num_slots)
        victims = np.argsort(scores, kind="stable")[:surplus]
        self._resident[victims] = False
        self._slots[:] = num_slots
        return tuple(victims.tolist())
