"""Who is in a slot, and who leaves: as a dictionary would have it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from oracle import LRUOracle

from mixoff.policies import LRU, Policy
from mixoff.residency import Residency


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, list[list[int]]]:
    """Draw experts, slots, and demands of any size, repetitions included."""
    experts = draw(st.integers(1, 10))
    slots = draw(st.integers(1, experts))
    demand = st.lists(st.integers(0, experts - 1), max_size=experts + 2)
    return experts, slots, draw(st.lists(demand, max_size=20))


class MRU(Policy):
    def scores(self, seen):
        return -seen.last_used


class Constant(Policy):
    def scores(self, seen):
        return np.zeros_like(seen.count)


def started(experts: int, slots: int, policy: Policy | None = None) -> Residency:
    """Return a residency with the highest experts resident, as a cache starts."""
    residency = Residency(experts, slots, policy or LRU())
    residency.start_with(range(experts - slots, experts))
    for expert in range(experts - slots, experts):
        load(residency, expert)
    return residency


def load(residency: Residency, expert: int, demand: list[int] = ()) -> int | None:
    slot, victim = residency.vacate(demand)
    residency.occupy(slot, expert)
    return victim


@given(runs())
def test_hits_misses_and_residents_are_those_of_a_dictionary(run):
    experts, slots, demands = run
    residency, oracle = started(experts, slots), LRUOracle(experts, slots)
    for needed in demands:
        hits, misses = residency.demand(needed)
        assert [*hits, *misses] == oracle.demand(needed)
        for expert in misses:
            load(residency, expert, needed)
            oracle.load(expert, needed)
            assert residency.residents == set(oracle.residents)


@given(runs())
def test_a_wanted_expert_leaves_only_when_no_other_is_left(run):
    experts, slots, demands = run
    for policy in (LRU(), MRU(), Constant()):
        residency = started(experts, slots, policy)
        for needed in demands:
            for expert in residency.demand(needed)[1]:
                before = residency.residents
                victim = load(residency, expert, needed)
                assert victim not in needed or before <= {*needed}


@given(runs())
def test_residents_have_slots_of_their_own(run):
    experts, slots, demands = run
    residency = started(experts, slots)
    for needed in demands:
        for expert in residency.demand(needed)[1]:
            load(residency, expert, needed)
            taken = [residency.slot(resident) for resident in residency.residents]
            assert len({*taken}) == len(taken) <= slots
            assert all(0 <= slot < slots for slot in taken)


@given(runs())
def test_an_expert_is_counted_once_a_demand(run):
    experts, slots, demands = run
    residency = started(experts, slots)
    for needed in demands:
        hits, misses = residency.demand(needed)
        assert len(hits) + len(misses) == len({*needed})


def test_at_the_start_the_lowest_expert_leaves_first():
    residency = started(experts=8, slots=3)
    _, misses = residency.demand([0, 1, 2])
    assert [load(residency, expert) for expert in misses] == [5, 6, 7]


def test_at_the_start_the_highest_expert_is_the_one_used_last():
    residency = started(experts=8, slots=3, policy=MRU())
    assert residency.vacate()[1] == 7


def test_a_free_slot_is_taken_before_anybody_leaves():
    residency = Residency(4, 2, LRU())
    assert [load(residency, expert) for expert in (0, 1, 2)] == [None, None, 0]


def test_a_slot_whose_read_failed_stays_free_and_holds_nobody():
    residency = started(experts=4, slots=2)
    slot, victim = residency.vacate()
    assert victim not in residency.residents
    assert residency.vacate() == (slot, None)


def test_the_expert_with_the_lowest_score_leaves():
    residency = started(experts=4, slots=3, policy=MRU())
    residency.demand([2])
    assert load(residency, 0) == 2


def test_a_resident_is_in_the_residency():
    residency = started(experts=4, slots=2)
    assert 3 in residency
    assert 0 not in residency
