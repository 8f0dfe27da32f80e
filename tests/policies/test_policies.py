"""Policies rank one layer as they rank many layers and sizes at once, by what was used when."""

import re
from dataclasses import replace

import numpy as np
import pytest

from mixoff.errors import ConfigError
from mixoff.policies.base import Policy
from mixoff.policies.fixed import Random, Static
from mixoff.policies.optimal import Belady
from mixoff.policies.registry import LIVE_POLICIES, POLICIES, policy_name, policy_named
from mixoff.policies.residency import Residency
from mixoff.policies.usage import Usage
from mixoff.simulate import replay, sweep
from mixoff.trace import Trace
from support.recordings import HandPlayed

K, L, E = 3, 4, 6  # sizes, layers, experts


def used(seed: int = 0) -> Usage:
    """Return usage of K sizes and L layers, as a replay holds it."""
    chance = np.random.default_rng(seed)
    usage = Usage(
        last_used=np.full((K, L, E), -1),
        entered=np.full((K, L, E), -1),
        count=np.zeros((L, E), np.int64),
        recent=np.zeros((L, E)),
        clock=np.zeros((L, 1), np.int64),
        layer=np.arange(L)[:, None],
        next_use=chance.integers(0, 9, (L, E)),
    )
    for _ in range(20):
        needed = chance.random((L, E)) < 0.4
        usage.touch(needed, needed & (chance.random((K, L, E)) < 0.5))
    return usage


def of_cache(usage: Usage, size: int, layer: int) -> Usage:
    """Return what a live cache of one size would hold for one layer."""
    return Usage(
        last_used=usage.last_used[size, layer],
        entered=usage.entered[size, layer],
        count=usage.count[layer],
        recent=usage.recent[layer],
        clock=usage.clock[layer],
        layer=usage.layer[layer],
        next_use=usage.next_use[layer],
    )


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_policy_ranks_many_layers_and_sizes_as_it_ranks_each_alone(name):
    usage, policy = used(), policy_named(name)
    scores = np.broadcast_to(policy.scores(usage), (K, L, E))
    for size in range(K):
        for layer in range(L):
            assert np.array_equal(scores[size, layer], policy.scores(of_cache(usage, size, layer)))


def test_a_demand_of_residents_is_noted_as_any_other():
    whole, shorter = Usage.unseen(E), Usage.unseen(E)
    for experts in ([1, 4], [], [0, 1, 5], [4]):
        whole.touch(np.isin(np.arange(E), experts), np.zeros(E, bool))
        shorter.touch_residents(experts)
        for name in ("last_used", "entered", "count", "recent", "clock"):
            assert np.array_equal(getattr(whole, name), getattr(shorter, name))


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_policy_changes_nothing_of_what_it_reads(name):
    usage, untouched = used(), used()
    policy_named(name).scores(usage)
    for column, before in vars(untouched).items():
        assert np.array_equal(getattr(usage, column), before)


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_policy_says_what_it_does_in_a_sentence(name):
    assert POLICIES[name].__doc__.splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", sorted({*POLICIES} - {*LIVE_POLICIES}))
def test_a_policy_that_needs_future_demands_is_refused_by_a_live_cache(name):
    with pytest.raises(ConfigError, match=r"mixoff\.sweep"):
        Residency(4, 2, policy_named(name)).demand([0])


# ---- features


def seen_demands() -> tuple[Usage, list[list[int]]]:
    """Return a layer's usage after some demands, an empty one and repetitions among them."""
    demands = [[1, 4], [4], [], [0, 1, 5], [4], [1, 2]]
    residency = Residency(8, 4, policy_named("lru"))
    for needed in demands:
        residency.demand(needed)
    return residency.usage, demands


def test_age_counts_the_demands_since_the_last_one_that_needed_an_expert():
    usage, demands = seen_demands()
    for expert in range(8):
        needing = [n for n, needed in enumerate(demands) if expert in needed]
        expected = len(demands) - 1 - needing[-1] if needing else len(demands) + 1
        assert usage.age[expert] == expected


def test_what_was_never_needed_is_older_than_all_that_was_resident_or_not():
    usage = Residency(8, 4, policy_named("lru")).usage
    assert usage.age.tolist() == [1] * 8
    usage, _ = seen_demands()
    never = usage.count == 0
    assert never.tolist() == [False, False, False, True, False, False, True, True]
    assert usage.age[never].min() > usage.age[~never].max()


def test_recent_decays_before_it_counts_the_present_demand():
    usage, demands = seen_demands()
    recent = [0.0] * 8
    for needed in demands:
        recent = [value * 0.5**0.1 + (expert in needed) for expert, value in enumerate(recent)]
    assert usage.recent.tolist() == recent


def test_recent_is_the_count_where_nothing_decayed_yet():
    residency = Residency(8, 4, policy_named("lru"))
    residency.demand([3, 6])
    assert residency.usage.recent.tolist() == residency.usage.count.tolist()


# ---- what is refused


class Returning(Policy):
    """Return the same scores whatever was seen."""

    def __init__(self, scores):
        self._scores = scores

    def scores(self, seen):
        return self._scores


TRACE = Trace.synthetic("uniform", tokens=9, layers=2, experts=8, top_k=2, seed=0)


@pytest.mark.parametrize("scores", [np.zeros(3), 0.0, np.zeros((8, 1)), np.zeros((5, 8)), None, []])
def test_scores_of_another_shape_are_refused_with_the_policys_name(scores):
    shape = re.escape(f"policy 'Returning': scores has shape {np.shape(scores)}")
    with pytest.raises(ConfigError, match=shape):
        Residency(8, 4, Returning(scores))
    for run in (sweep, replay):
        with pytest.raises(ConfigError, match=shape):
            run(TRACE, Returning(scores))


class NaN(Policy):
    """Score by a quotient that has no value for what was never needed."""

    def scores(self, seen):
        with np.errstate(invalid="ignore"):
            return seen.count / seen.count


def test_nan_is_refused_with_the_policys_name():
    refused = "policy 'NaN': scores has NaN for expert [0-7]"
    residency = Residency(8, 4, NaN())
    with pytest.raises(ConfigError, match=refused):
        residency.demand([0])
    with pytest.raises(ConfigError, match=refused):
        residency.resize(1)
    for policies in (NaN(), ["lru", NaN(), "lfu"]):
        with pytest.raises(ConfigError, match=refused):
            sweep(TRACE, policies)
    with pytest.raises(ConfigError, match=refused):
        replay(TRACE, NaN(), 3)


def test_nan_before_the_first_demand_is_no_mistake():
    class Share(Policy):
        def scores(self, seen):
            return seen.count / seen.clock

    assert Residency(8, 4, Share()).demand([0]).evictions == ((0, 4),)
    assert sweep(TRACE, Share(), 4)["hits"].sum() > 0


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, np.float16, np.float32, bool])
def test_scores_may_be_numbers_of_any_type(dtype):
    scores = np.array([0, 1, 1, 0, 1, 1, 0, 1], dtype)
    assert Residency(8, 4, Returning(scores)).demand([0, 1]).evictions == ((0, 6), (1, 4))
    assert replay(TRACE, Returning(scores), 4).hit.any()


# ---- each policy


def test_lfu_prefers_the_count_and_then_the_last_use():
    residency = Residency(4, 4, policy_named("lfu"))
    for needed in ([0, 1, 2, 3], [3], [1], [0], [1]):
        residency.demand(needed)
    assert residency.resize(1) == (2, 3, 0)


def test_fifo_does_not_care_about_use():
    residency = Residency(4, 2, policy_named("fifo"))
    for needed in ([1], [3], [2]):  # 1 takes the place of 2, and 3 hits
        decision = residency.demand(needed)
    assert decision.evictions == ((2, 3),)


@pytest.mark.parametrize("seeds", [(0, 0), (5, 5), (0, 5)])
def test_the_seed_decides_what_random_evicts(seeds):
    first, second = (Residency(64, 32, Random(seed)).demand(range(32)) for seed in seeds)
    assert (first == second) == (seeds[0] == seeds[1])


def test_random_evicts_every_expert_about_as_often():
    scores = np.stack(
        [Random().scores(replace(used(), clock=np.full((L, 1), clock))) for clock in range(4000)]
    )
    lowest = np.bincount(scores.argmin(axis=-1).reshape(-1), minlength=E) / scores[..., 0].size
    assert np.abs(lowest - 1 / E).max() < 0.01


def test_static_keeps_what_is_worth_most_in_each_layer():
    worth = [[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]]
    for layer, best in enumerate(({0, 2}, {2, 3})):
        residency = Residency(4, 2, Static(worth), layer)
        residency.demand(range(4))
        assert residency.residents == best


def test_belady_ranks_by_the_next_use():
    usage = replace(used(), next_use=np.arange(E)[None])
    assert np.argmin(Belady().scores(usage)[0]) == E - 1


# ---- names


def test_an_unknown_policy_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"policy='mru': give one of lru, .*belady-bypass"):
        policy_named("mru")


class MRU(Policy):
    def scores(self, seen):
        return -seen.last_used


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("belady-bypass", "belady-bypass"),
        (policy_named("lru"), "lru"),
        (Random(), "random"),
        (Random(seed=3), "random(seed=3)"),
        (Static(), "static"),
        (Static(np.ones((1, 2))), "static(worth)"),
        (MRU(), "mru"),
    ],
)
def test_a_policy_is_named_with_the_settings_that_are_not_the_default(policy, name):
    assert policy_name(policy) == name


def test_a_policy_of_a_user_serves_a_live_cache():
    played = HandPlayed(layers=1, experts=4, slots=2, policy=MRU()).record()
    played.demand(0, [0])
    assert played.layers[0].residents == {0, 2}
    assert played.trace().provenance["policy"] == "mru"
