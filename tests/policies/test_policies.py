"""Who is ranked how: for one layer, or for many layers and sizes at once."""

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
from support.recordings import HandPlayed

K, L, E = 3, 4, 6  # sizes, layers, experts


def used(seed: int = 0) -> Usage:
    """Return usage of K sizes and L layers, as a replay holds it."""
    chance = np.random.default_rng(seed)
    usage = Usage(
        last_used=np.full((K, L, E), -1),
        entered=np.full((K, L, E), -1),
        count=np.zeros((L, E), np.int64),
        clock=np.zeros((L, 1), np.int64),
        layer=np.arange(L)[:, None],
        next_use=chance.integers(0, 9, (L, E)),
    )
    for _ in range(20):
        needed = chance.random((L, E)) < 0.4
        usage.touch(needed, needed & (chance.random((K, L, E)) < 0.5))
    return usage


def one(usage: Usage, size: int, layer: int) -> Usage:
    """Return what a live cache would hold of one size and layer."""
    return Usage(
        last_used=usage.last_used[size, layer],
        entered=usage.entered[size, layer],
        count=usage.count[layer],
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
            assert np.array_equal(scores[size, layer], policy.scores(one(usage, size, layer)))


def test_a_demand_of_residents_is_noted_as_any_other():
    whole, shorter = Usage.unseen(E), Usage.unseen(E)
    for experts in ([1, 4], [], [0, 1, 5], [4]):
        whole.touch(np.isin(np.arange(E), experts), np.zeros(E, bool))
        shorter.touch_residents(experts)
        for name in ("last_used", "entered", "count", "clock"):
            assert np.array_equal(getattr(whole, name), getattr(shorter, name))


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_policy_changes_nothing_of_what_it_looks_at(name):
    usage, untouched = used(), used()
    policy_named(name).scores(usage)
    for column, before in vars(untouched).items():
        assert np.array_equal(getattr(usage, column), before)


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_policy_says_what_it_does_in_a_sentence(name):
    assert POLICIES[name].__doc__.splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", sorted({*POLICIES} - {*LIVE_POLICIES}))
def test_a_policy_that_knows_the_future_is_refused_by_a_live_cache(name):
    with pytest.raises(ConfigError, match=r"mixoff\.sweep"):
        Residency(4, 2, policy_named(name)).demand([0])


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
def test_the_seed_decides_whom_random_evicts(seeds):
    one, other = (Residency(64, 32, Random(seed)).demand(range(32)) for seed in seeds)
    assert (one == other) == (seeds[0] == seeds[1])


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
def test_a_policy_is_called_by_its_name_and_what_is_unusual_of_it(policy, name):
    assert policy_name(policy) == name


def test_a_policy_of_a_user_serves_live_as_it_is():
    played = HandPlayed(layers=1, experts=4, slots=2, policy=MRU()).record()
    played.demand(0, [0])
    assert played.layers[0].residents == {0, 2}
    assert played.trace().provenance["policy"] == "mru"
