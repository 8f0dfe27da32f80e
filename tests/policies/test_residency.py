"""Residents and victims are those of a plain program, and all rules of a cache hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixoff.policies.admission import admit
from mixoff.policies.base import Policy
from mixoff.policies.recency import LRU
from mixoff.policies.registry import LIVE_POLICIES, policy_named
from mixoff.policies.residency import Decision, Residency
from support.oracle import ORACLES, LRUOracle


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, list[list[int]]]:
    """Return experts, slots, and demands of any size, with repetitions."""
    experts = draw(st.integers(1, 10))
    slots = draw(st.integers(0, experts))
    demand = st.lists(st.integers(0, experts - 1), max_size=experts + 2)
    return experts, slots, draw(st.lists(demand, max_size=20))


class MRU(Policy):
    def scores(self, seen):
        return -seen.last_used


class Constant(Policy):
    def scores(self, seen):
        return np.zeros_like(seen.count)


class HighestNumbers(Policy):
    """Lets no expert in whose number is below that of all residents."""

    bypass = True

    def scores(self, seen):
        return np.arange(seen.count.shape[-1])


EVERY = [*LIVE_POLICIES, MRU(), Constant(), HighestNumbers()]
by_policy = pytest.mark.parametrize(
    "policy", [policy_named(policy) for policy in EVERY], ids=lambda policy: type(policy).__name__
)


@given(runs())
def test_hits_misses_victims_and_residents_of_lru_are_those_of_a_dictionary(run):
    experts, slots, demands = run
    residency, oracle = Residency(experts, slots, LRU()), LRUOracle(experts, slots)
    for needed in demands:
        decision = residency.demand(needed)
        assert [*decision.hits, *decision.misses] == oracle.demand(needed)
        for expert, victim in decision.evictions:
            assert victim == oracle.load(expert, needed)
        assert residency.residents == {*oracle.residents}


def test_every_live_policy_has_an_oracle():
    without = {*LIVE_POLICIES} - {*ORACLES}
    assert not without, f"add a slow and plain one for {without} to ORACLES"


@pytest.mark.parametrize("name", sorted({*LIVE_POLICIES} & {*ORACLES}))
@given(run=runs(), layer=st.integers(0, 40))
def test_a_live_policy_decides_as_its_oracle(name, run, layer):
    experts, slots, demands = run
    residency = Residency(experts, slots, policy_named(name), layer)
    oracle = ORACLES[name](experts, slots, layer)
    for needed in demands:
        decision = residency.demand(needed)
        assert [*map(list, (decision.hits, decision.misses, decision.evictions))] == [
            *oracle.demand(needed)
        ]
        assert residency.residents == oracle.residents


# ---- what every policy keeps, those of users too


@by_policy
@given(run=runs())
def test_a_demand_is_split_into_hits_and_misses_that_ascend(policy, run):
    experts, slots, demands = run
    residency = Residency(experts, slots, policy)
    for needed in demands:
        before = residency.residents
        hits, misses, _ = vars(residency.demand(needed)).values()
        assert [*hits] == sorted({*needed} & before)
        assert [*misses] == sorted({*needed} - before)


@by_policy
@given(run=runs())
def test_evictions_are_the_changes_of_the_residents(policy, run):
    experts, slots, demands = run
    residency = Residency(experts, slots, policy)
    for needed in demands:
        residents = {*residency.residents}
        decision = residency.demand(needed)
        assert [expert for expert, _ in decision.evictions] == [*decision.misses]
        for expert, victim in decision.evictions:
            assert (victim is None) == (len(residents) < slots)
            residents.add(expert)
            residents -= {victim}
        assert residency.residents == residents
        assert len(residents) <= slots


@by_policy
@given(run=runs())
def test_a_needed_expert_is_evicted_only_where_no_other_is_left_or_it_may_pass_by(policy, run):
    experts, slots, demands = run
    residency = Residency(experts, slots, policy)
    for needed in demands:
        residents = {*residency.residents}
        for expert, victim in residency.demand(needed).evictions:
            assert policy.bypass or victim not in needed or residents <= {*needed}
            residents = (residents | {expert}) - {victim}


@by_policy
@given(run=runs())
def test_all_of_a_demand_is_resident_afterwards_if_there_are_slots_for_it(policy, run):
    experts, slots, demands = run
    residency = Residency(experts, slots, policy)
    for needed in demands:
        residency.demand(needed)
        if len({*needed}) <= slots and not policy.bypass:
            assert {*needed} <= residency.residents


@by_policy
@given(run=runs(), sizes=st.lists(st.integers(1, 10), max_size=20))
def test_a_resize_keeps_as_many_residents_as_fit_and_evicts_the_rest(policy, run, sizes):
    experts, slots, demands = run
    residency = Residency(experts, slots, policy)
    for needed, size in zip(demands, sizes, strict=False):
        residency.demand(needed)
        before = residency.residents
        evicted = residency.resize(size)
        assert len({*evicted}) == len(evicted) == max(0, len(before) - size)
        assert residency.residents == before - {*evicted}
        assert residency.num_slots == size


@by_policy
@given(run=runs())
def test_the_same_demands_are_decided_alike(policy, run):
    experts, slots, demands = run
    first, second = (Residency(experts, slots, policy) for _ in range(2))
    assert [*map(first.demand, demands)] == [*map(second.demand, demands)]


# ---- starts, ties, bypass, sizes


@pytest.mark.parametrize("slots", [0, 4])
def test_experts_are_ints_whatever_numbers_were_demanded(slots):
    decision = Residency(4, slots, LRU()).demand(np.array([3, 1, 3]))
    assert decision.hits + decision.misses == (1, 3)
    assert {type(expert) for expert in decision.hits + decision.misses} == {int}


def test_at_the_start_the_highest_experts_are_resident_and_the_lowest_is_evicted_first():
    residency = Residency(8, 3, LRU())
    assert residency.residents == {5, 6, 7}
    decision = residency.demand([0, 1, 2])
    assert decision.evictions == ((0, 5), (1, 6), (2, 7))


def test_at_the_start_the_highest_expert_is_the_one_used_last():
    assert Residency(8, 3, MRU()).demand([0]).evictions == ((0, 7),)


def test_of_equal_scores_the_lowest_expert_is_evicted():
    assert Residency(8, 3, Constant()).demand([1]).evictions == ((1, 5),)


def test_an_expert_that_passes_by_is_its_own_victim():
    residency = Residency(8, 3, HighestNumbers())
    assert residency.demand([1, 4, 7]) == Decision((7,), (1, 4), ((1, 1), (4, 4)))
    assert residency.residents == {5, 6, 7}


def test_a_bypass_may_take_the_slot_of_a_hit():
    class LowestNumbers(HighestNumbers):
        def scores(self, seen):
            return -np.arange(seen.count.shape[-1])

    assert Residency(8, 1, LowestNumbers()).demand([0, 7]) == Decision((7,), (0,), ((0, 7),))


def test_a_free_slot_is_taken_before_any_is_evicted():
    residency = Residency(4, 1, LRU())
    residency.resize(3)
    assert residency.demand([0, 1, 2]).evictions == ((0, None), (1, None), (2, 3))


def test_a_resize_evicts_what_would_have_been_evicted_first():
    residency = Residency(4, 4, LRU())
    residency.demand([0, 2])
    assert residency.resize(1) == (1, 3, 0)
    assert residency.residents == {2}


def test_residents_that_are_put_in_place_are_those_that_hit():
    residency = Residency(4, 2, LRU())
    residency.residents = [0]
    assert residency.demand([0, 3]) == Decision((0,), (3,), ((3, None),))


@pytest.mark.parametrize("score", [np.inf, -np.inf])
def test_an_infinite_score_keeps_no_expert_out(score):
    class Infinite(Policy):
        def scores(self, seen):
            return np.where(np.arange(seen.count.shape[-1]) == 3, score, 0.0)

    residency = Residency(4, 2, Infinite())
    residency.demand([0, 1])
    assert residency.residents == {0, 1}
    residency.demand([2, 3])
    assert residency.resize(1) == ((3,) if score == -np.inf else (2,))


@given(st.integers(1, 10), st.integers(0, 2**32))
def test_many_rows_at_once_are_decided_as_each_alone(experts, seed):
    chance = np.random.default_rng(seed)
    rows = 5
    needed = chance.random((rows, experts)) < 0.4
    scores = chance.integers(0, 4, (rows, experts)).astype(float)
    slots = chance.integers(1, experts + 1, rows)
    resident = chance.random((rows, experts)).argsort(axis=1) < (slots - 1)[:, None]
    bypass = chance.random(rows) < 0.5

    def admitted(part: slice) -> tuple[list, list]:
        inside, rounds = resident[part].copy(), []
        for at, newcomers, victims in admit(
            inside,
            needed[part],
            needed[part] & ~inside,
            scores=scores[part],
            slots=slots[part],
            bypass=bypass[part],
        ):
            rounds += np.stack([at + part.start, newcomers, victims], axis=1).tolist()
        return sorted(rounds, key=lambda row: row[0]), inside.tolist()

    alone = [admitted(slice(row, row + 1)) for row in range(rows)]
    rounds, inside = admitted(slice(0, rows))
    assert rounds == [row for own, _ in alone for row in own]
    assert inside == [row for _, own in alone for row in own]
