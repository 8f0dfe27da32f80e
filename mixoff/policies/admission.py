"""Which resident is evicted for which newcomer. Knows masks of experts; nothing of tensors.

Everything is decided for many rows at once, each a layer of a cache: a live cache has one row, a
replay one for each layer, size and policy, so that both decide alike. N rows, R of them, E experts.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mixoff.policies.base import Policy, refuse_nan, scores_of
from mixoff.policies.usage import Array, Usage

_HIGHEST = np.finfo(np.float64).max  # in place of the score infinity, which marks no candidate here


class Ranking:
    """A policy's scores of some caches, and the calls of its memory.

    Parameters
    ----------
    policy
        Ranks residents.
    usage
        The arrays that the policy reads. They broadcast to [..., E] and change in place.
    resident
        [..., E] bool: the experts that the caches begin with.
    slots
        [..., 1]: how many experts may be resident; it changes in place, too.
    """

    def __init__(self, policy: Policy, usage: Usage, resident: Array, slots: Array) -> None:
        self.policy = policy
        self.shape = resident.shape
        self._memory = policy.start(resident.copy(), slots)
        self.has_memory = self._memory is not None
        self._seen = replace(usage, memory=self._memory)

    def scores(self) -> Array:
        """Return the policy's scores, which broadcast to [..., E] and may still be NaN."""
        return scores_of(self.policy, self._seen, self.shape)

    def rows(self) -> Array:
        """Return the policy's scores, [N, E], none of them NaN."""
        scores = self.scores()
        refuse_nan(self.policy, scores)
        if scores.shape != self.shape:
            scores = np.broadcast_to(scores, self.shape)
        return scores.reshape(-1, self.shape[-1])

    def demanded(self, hits: Array, misses: Array) -> None:
        """Report a demand to the memory: masks [..., E]."""
        if self._memory is not None:
            self._memory.demanded(hits, misses)

    def evicted(self, rows: Array, victims: Array, candidates: Array) -> None:
        """Report a victim of each of R rows to the memory, chosen among candidates [R, E]."""
        if self._memory is not None and rows.size:
            every = np.zeros((np.prod(self.shape[:-1], dtype=int), self.shape[-1]), bool)  # [N, E]
            every[rows] = candidates
            self._memory.evicted(self._mask(rows, victims), every.reshape(self.shape))

    def admitted(self, rows: Array, newcomers: Array) -> None:
        """Report a newcomer of each of R rows to the memory."""
        if self._memory is not None and rows.size:
            self._memory.admitted(self._mask(rows, newcomers))

    def _mask(self, rows: Array, experts: Array) -> Array:
        mask = np.zeros(self.shape, bool)
        mask.reshape(-1)[rows * self.shape[-1] + experts] = True
        return mask


def admit(
    resident: Array,
    needed: Array,
    missed: Array,
    *,
    scores: Array,
    slots: Array,
    bypass: bool | Array,
    ranking: Ranking | None = None,
) -> Iterator[tuple[Array, Array, Array]]:
    """Let each row's misses in, in ascending order, and yield (rows, newcomers, victims) by rounds.

    Where a row has no free slot a resident is evicted: the lowest score outside the demand, or with
    none left there, the lowest score of all but the newcomer. A row that may bypass weighs the
    newcomer and the demand's other experts like any resident, so that the newcomer itself may be
    evicted at once.

    Parameters
    ----------
    resident
        [N, E] bool, changed in place.
    needed, missed
        [N, E] bool: the demand, and those of its experts that are to be let in.
    scores
        [N, E]: the lowest is evicted first.
    slots
        [N]: how many experts may be resident.
    bypass
        Whether a row may bypass: one for all, or [N]. A row without slots always does.
    ranking
        The source of `scores`, if its policy has a memory: every round is reported to it, and the
        next round takes its scores anew.

    Yields
    ------
    tuple
        Of each round: the rows with a newcomer, the newcomers, and the victims, -1 for none.
    """
    rows = _rows_with_any(missed)  # [R] of those with a newcomer still to be let in
    waiting = missed.take(rows, axis=0)
    bypasses = (bypass | (slots == 0)).take(rows)
    scores = np.fmin(scores.take(rows, axis=0), _HIGHEST)  # infinity marks what can't be evicted
    inside = resident.take(rows, axis=0)
    free = slots.take(rows) - inside @ np.ones(inside.shape[1], np.float32)  # a count, faster
    outside_demand = ~needed.take(rows, axis=0)
    evictable = np.where(inside & (outside_demand | bypasses[:, None]), scores, np.inf)
    while rows.size:
        each = np.arange(len(rows)) * scores.shape[1]  # where a row begins in a flat [R * E]
        newcomers = waiting.argmax(axis=1)
        at = each + newcomers
        waiting.reshape(-1)[at] = False
        resident[rows, newcomers] = True
        evictable.reshape(-1)[at] = np.where(bypasses, scores.take(at), np.inf)
        victims = evictable.argmin(axis=1)
        if (lowest := evictable.take(each + victims)).max() == np.inf:
            none_left = np.flatnonzero(lowest == np.inf)
            victims[none_left] = _own_victims(resident, scores, rows, newcomers, none_left)
        victims[free > 0] = -1
        free -= 1
        full = np.flatnonzero(victims >= 0)
        if ranking is not None:
            _report(ranking, resident, evictable < np.inf, rows, newcomers, victims)
        resident[rows.take(full), victims.take(full)] = False
        evictable.reshape(-1)[(each + victims).take(full)] = np.inf
        yield rows, newcomers, victims
        more = _rows_with_any(waiting)
        rows, waiting, bypasses, scores, evictable, free = (
            array.take(more, axis=0) for array in (rows, waiting, bypasses, scores, evictable, free)
        )
        if ranking is not None and rows.size:
            scores = np.fmin(ranking.rows().take(rows, axis=0), _HIGHEST)
            evictable = np.where(evictable < np.inf, scores, np.inf)


def _rows_with_any(mask: Array) -> Array:
    return np.flatnonzero(mask.take(np.arange(len(mask)) * mask.shape[1] + mask.argmax(axis=1)))


def _own_victims(
    resident: Array, scores: Array, rows: Array, newcomers: Array, places: Array
) -> Array:
    """Return the victims where only the demand's own are left: the lowest but the newcomer."""
    ranked = np.where(resident.take(rows.take(places), axis=0), scores.take(places, axis=0), np.inf)
    ranked[np.arange(len(places)), newcomers.take(places)] = np.inf
    victims: Array = ranked.argmin(axis=1)
    return victims


def _report(
    ranking: Ranking,
    resident: Array,
    candidates: Array,
    rows: Array,
    newcomers: Array,
    victims: Array,
) -> None:
    """Report a round of `admit`, whose newcomers are marked as resident and victims still are."""
    own = np.flatnonzero(~candidates.any(axis=1))  # rows in which only the demand's own are left
    candidates[own] = resident[rows[own]]
    candidates[np.arange(len(rows)), newcomers] = False
    evicting = (victims >= 0) & (victims != newcomers)
    ranking.evicted(rows[evicting], victims[evicting], candidates[evicting])
    entering = victims != newcomers  # the others pass by
    ranking.admitted(rows[entering], newcomers[entering])


def shrink(resident: Array, slots: Array, ranking: Ranking) -> Iterator[tuple[Array, Array]]:
    """Evict residents for which there is no slot, the lowest score first; yield (rows, victims).

    Parameters
    ----------
    resident
        [N, E] bool, changed in place.
    slots
        [N]: how many experts may be resident now.
    ranking
        Ranks the residents, anew for each round of one victim a row.
    """
    while (rows := np.flatnonzero(resident.sum(axis=1) > slots)).size:
        inside = resident[rows]
        scores = np.fmin(ranking.rows()[rows], _HIGHEST)
        victims = np.where(inside, scores, np.inf).argmin(axis=1)
        resident[rows, victims] = False
        ranking.evicted(rows, victims, inside)
        yield rows, victims


def replace_residents(resident: Array, wanted: Array, ranking: Ranking) -> None:
    """Make `wanted` [N, E] the residents, whatever was decided, and report what that changes."""
    for expert in range(resident.shape[1]):
        rows = np.flatnonzero(resident[:, expert] & ~wanted[:, expert])
        only = np.broadcast_to(
            np.arange(resident.shape[1]) == expert, (len(rows), len(resident[0]))
        )
        ranking.evicted(rows, np.full(len(rows), expert), only)
    for expert in range(resident.shape[1]):
        rows = np.flatnonzero(wanted[:, expert] & ~resident[:, expert])
        ranking.admitted(rows, np.full(len(rows), expert))
    resident[:] = wanted
