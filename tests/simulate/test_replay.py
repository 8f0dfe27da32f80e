"""Replays agree with live decisions, with oracles, and with what can be known beforehand."""

import copy
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixoff.errors import ConfigError, TraceError
from mixoff.policies.base import Policy
from mixoff.policies.fixed import Random, Static
from mixoff.policies.registry import LIVE_POLICIES, POLICIES, policy_name
from mixoff.simulate.replay import replay, sweep
from mixoff.trace import Trace
from support.oracle import ORACLES, LRUOracle, most_hits
from support.recordings import NBYTES, HandPlayed, traced

# Simulated hit rates in percent at 1 to 7 of 8 slots, uniform top-2 of 8, 20,000 tokens: the
# survey's table of floor and ceiling, columns "MIN, must admit" and "MIN with bypass".
UNIFORM = {
    "belady": (12.5, 25.2, 51.6, 67.4, 78.9, 87.8, 94.7),
    "belady-bypass": (30.3, 48.8, 62.4, 73.2, 82.0, 89.3, 95.2),
}


@cache
def uniform(tokens: int = 20_000) -> Trace:
    return Trace.synthetic("uniform", tokens=tokens, layers=1, experts=8, top_k=2, seed=5)


@cache
def uniform_rates() -> dict[str, list[float]]:
    """Return each policy's hit rates of 20,000 uniform tokens, at 1 to 8 slots."""
    table = sweep(uniform(), ["floor", *POLICIES])
    return table.groupby("policy")["hit_rate"].apply(list).to_dict()


def rates(trace: Trace, policy: str | Policy, slots: object = None) -> list[float]:
    """Return the hit rate of one layer at each size."""
    return sweep(trace, [policy], slots)["hit_rate"].tolist()


class MRU(Policy):
    def scores(self, seen):
        return -seen.last_used


# ---- known answers


def test_lru_hits_uniform_routing_by_chance():
    assert uniform_rates()["lru"] == pytest.approx([k / 8 for k in range(1, 9)], abs=0.01)


@pytest.mark.parametrize("policy", sorted({*LIVE_POLICIES} - {"lru"}))
def test_no_policy_without_future_demands_beats_chance_on_uniform_routing(policy):
    assert uniform_rates()[policy] == pytest.approx([k / 8 for k in range(1, 9)], abs=0.01)


@pytest.mark.parametrize("policy", list(UNIFORM))
def test_the_bounds_of_uniform_routing_are_those_of_the_survey(policy):
    expected = [percent / 100 for percent in UNIFORM[policy]]
    assert uniform_rates()[policy][:7] == pytest.approx(expected, abs=0.01)


def test_the_floor_is_slots_over_experts():
    assert uniform_rates()["floor"] == [k / 8 for k in range(1, 9)]


def test_a_static_cache_of_the_most_popular_hits_their_share_of_zipf():
    trace = Trace.synthetic("zipf", tokens=20_000, layers=1, experts=8, top_k=1, seed=5)
    share = np.cumsum(1 / np.arange(1, 9)) / np.sum(1 / np.arange(1, 9))
    static = rates(trace, Static(-np.arange(8.0)[None]))
    assert static == pytest.approx(share, abs=0.01)
    assert rates(trace, "lfu") <= [rate + 0.01 for rate in static]


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_lru_with_top_k_slots_hits_half_of_sticky_routing(top_k):
    trace = Trace.synthetic("sticky", tokens=20_000, layers=1, experts=8, top_k=top_k, seed=5)
    assert rates(trace, "lru", top_k) == pytest.approx([0.5], abs=0.01)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_lru_hits_nothing_of_a_cycle_that_does_not_fit(top_k):
    trace = Trace.synthetic("cyclic", tokens=1000, layers=1, experts=8, top_k=top_k, seed=0)
    table = sweep(trace, "lru", range(1, 9 - top_k))
    assert table["hits"].max() <= 8, "hits that the start gave"
    assert replay(trace, "lru", 8 - top_k).hit[16:].sum() == 0


def test_min_hits_a_cycle_as_often_as_one_slot_less_goes_into_one_expert_less():
    trace = Trace.synthetic("cyclic", tokens=8 * 7 * 50, layers=1, experts=8, top_k=1, seed=0)
    expected = [(slots - 1) / 7 for slots in range(1, 9)]
    assert rates(trace, "belady") == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo", "random", "belady"])
def test_constant_routing_misses_each_expert_once(policy):
    trace = Trace.synthetic("constant", tokens=1000, layers=3, experts=8, top_k=2, seed=1)
    assert sweep(trace, policy, range(2, 9))["misses"].max() <= 2


# ---- oracles


def drawn(number: int, *, seed: int, largest: int | None = None) -> tuple[list, list[int]]:
    """Return random demands of so many layers, none larger than its slots, and the slots."""
    chance = np.random.default_rng(seed)
    slots = chance.integers(1, 6, number).tolist()  # of 6 experts
    layers = [
        [
            chance.choice(6, chance.integers(1, (largest or size) + 1), replace=False).tolist()
            for _ in range(chance.integers(3, 12))
        ]
        for size in slots
    ]
    return layers, slots


def hits_at(trace: Trace, policy: str, slots: list[int]) -> list[int]:
    """Return the hits of each layer, with its own number of slots."""
    table = sweep(trace, policy).set_index(["slots", "layer"])["hits"]
    return [int(table[size, layer]) for layer, size in enumerate(slots)]


def test_belady_hits_as_much_as_the_best_choice_of_victims():
    layers, slots = drawn(1000, seed=3)
    best = [most_hits(d, 6, k, bypass=False) for d, k in zip(layers, slots, strict=True)]
    assert hits_at(traced(layers, 6), "belady", slots) == best


@pytest.mark.parametrize("largest", [None, 6])
def test_belady_with_bypass_hits_as_much_as_the_best_choice_of_residents(largest):
    layers, slots = drawn(1000, seed=4, largest=largest)
    best = [most_hits(d, 6, k, bypass=True) for d, k in zip(layers, slots, strict=True)]
    assert hits_at(traced(layers, 6), "belady-bypass", slots) == best


@pytest.mark.parametrize("routing", ["uniform", "zipf", "sticky", "cyclic", "constant"])
def test_no_policy_beats_belady_with_bypass(routing):
    trace = Trace.synthetic(routing, tokens=500, layers=3, experts=8, top_k=3, seed=2)
    table = sweep(trace, [*POLICIES, MRU()]).pivot(
        index=["slots", "layer"], columns="policy", values="hits"
    )
    assert (table.T <= table["belady-bypass"]).all(axis=None)


def test_a_sweep_counts_lru_as_a_dictionary_does():
    layers, _ = drawn(50, seed=6, largest=6)
    table = sweep(traced(layers, 6), "lru").set_index(["slots", "layer"])
    for layer, demands in enumerate(layers):
        for slots in range(1, 7):
            oracle = LRUOracle(6, slots)
            for needed in demands:
                for expert in oracle.demand(needed):
                    if expert not in oracle.residents:
                        oracle.load(expert, needed)
            row = table.loc[(slots, layer)]
            assert (row["hits"], row["misses"]) == (oracle.hits, oracle.misses)


@pytest.mark.parametrize("policy", LIVE_POLICIES)
def test_a_sweep_counts_a_policy_as_its_oracle_does(policy):
    layers, _ = drawn(50, seed=7, largest=6)
    table = sweep(traced(layers, 6), policy).set_index(["slots", "layer"])["hits"]
    for layer, demands in enumerate(layers):
        for slots in range(1, 7):
            oracle = ORACLES[policy](6, slots, layer)
            hits = sum(len(oracle.demand(needed)[0]) for needed in demands)
            assert table[slots, layer] == hits


# ---- live and replayed


EXPERTS, LAYERS = 5, 3
demands = st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=EXPERTS)
forwards = st.lists(st.tuples(st.integers(0, LAYERS - 1), demands), max_size=25)
slot_counts = st.integers(1, EXPERTS)


@pytest.mark.parametrize("policy", [*LIVE_POLICIES, Random(seed=9)], ids=policy_name)
@given(before=forwards, after=forwards, slots=slot_counts)
def test_a_replay_hits_what_the_live_cache_hit(policy, before, after, slots):
    played = HandPlayed(layers=LAYERS, experts=EXPERTS, slots=slots, policy=policy)
    for layer, needed in before:
        played.demand(layer, needed)
    played.record()
    for layer, needed in after:
        played.demand(layer, needed, tokens=len(needed))
    trace = played.trace()
    assert trace.demands().hit.tolist() == played.hits
    for again in (replay(trace, policy), replay(trace, policy, slots)):
        assert again.hit.tolist() == played.hits
    layer = np.repeat(trace.demands().layer, np.diff(trace.demands().first))
    per_layer = tuple(np.bincount(layer[again.hit], minlength=LAYERS).tolist())
    assert again.hits_per_layer == per_layer
    assert tuple(sweep(trace, [policy], slots)["hits"]) == per_layer


@pytest.mark.parametrize("policy", LIVE_POLICIES)
@given(parts=st.lists(st.tuples(slot_counts, demands, demands, forwards), max_size=4))
def test_a_replay_follows_resizes_and_interrupted_demands(policy, parts):
    played = HandPlayed(layers=LAYERS, experts=EXPERTS, slots=2, policy=policy).record()
    for slots, needed, left, forward in parts:
        played.resize(slots)
        played.cut(1, needed, left=left[:slots])
        for layer, wanted in forward:
            played.demand(layer, wanted)
    assert replay(played.trace()).hit.tolist() == played.hits


def test_a_trace_that_was_saved_is_replayed_alike(tmp_path):
    played = HandPlayed(layers=2, experts=6, slots=3, policy="lfu")
    played.demand(0, [1, 2])
    played.record()
    for needed in ([1, 5], [0, 2], [3, 4], [1, 3]):
        played.demand(0, needed)
        played.demand(1, needed)
    played.trace().save(tmp_path / "a.trace")
    assert replay(Trace.load(tmp_path / "a.trace")).hit.tolist() == played.hits


# ---- starts


def begun(policy: str = "lru") -> HandPlayed:
    """Return a cache of 3 of 6 experts that was used, and then recorded."""
    played = HandPlayed(layers=1, experts=6, slots=3, policy=policy)
    for needed in ([0], [1], [2], [0], [0]):
        played.demand(0, needed)
    return played.record()


def first_hits(trace: Trace, policy: str | Policy, slots: int) -> list[int]:
    """Return which experts hit in the first demand, of all of them."""
    hit = replay(trace, policy, slots).hit[:6]
    return trace.demands().expert[:6][hit].tolist()


def test_the_recorded_cache_begins_with_the_recorded_residents():
    played = begun()
    played.layers[0].residents = [1, 4]
    played.record().demand(0, range(6))
    assert first_hits(played.trace(), "lru", 3) == [1, 4]


@pytest.mark.parametrize(
    ("policy", "slots", "best"),
    [("lru", 2, [0, 2]), ("lru", 4, [0, 1, 2, 5]), ("lfu", 1, [0]), ("static", 3, [3, 4, 5])],
)
def test_another_cache_begins_with_what_its_policy_ranks_highest(policy, slots, best):
    played = begun()
    played.demand(0, range(6))
    assert sorted(first_hits(played.trace(), policy, slots)) == best


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("slots", [2, 3, 4])
def test_before_any_demand_every_cache_begins_with_the_highest_experts(policy, slots):
    played = HandPlayed(layers=1, experts=6, slots=3).record()
    played.demand(0, range(6))
    assert sorted(first_hits(played.trace(), policy, slots)) == [*range(6 - slots, 6)]


def test_before_any_demand_the_highest_expert_of_a_larger_cache_is_the_one_used_last_too():
    played = HandPlayed(layers=1, experts=8, slots=2).record()
    played.demand(0, [0, 1, 2])  # evicts 7, 6 and 5, the one used last first
    played.demand(0, [4, 5])
    trace = played.trace()
    hit = replay(trace, MRU(), 4).hit
    assert trace.demands().expert[hit].tolist() == [4]


@pytest.mark.parametrize("policy", [*LIVE_POLICIES, MRU()], ids=policy_name)
@given(forward=forwards, slots=slot_counts)
def test_a_replay_of_another_size_hits_what_a_live_cache_of_that_size_hits(policy, forward, slots):
    recorded, resized = (
        HandPlayed(layers=LAYERS, experts=EXPERTS, slots=size, policy=policy).record()
        for size in (2, slots)
    )
    for played in (recorded, resized):
        for layer, needed in forward:
            played.demand(layer, needed)
    again, live = recorded.trace(), resized.trace()
    assert hit_in(again, replay(again, policy, slots).hit) == hit_in(live, live.demands().hit)


def hit_in(trace: Trace, hit: np.ndarray) -> set[tuple[int, int]]:
    """Return the numbers of demands and experts that hit."""
    demands = trace.demands()
    number = np.repeat(np.arange(len(demands)), np.diff(demands.first))
    return {*zip(number[hit].tolist(), demands.expert[hit].tolist(), strict=True)}


def test_a_sweep_changes_nothing_of_its_trace():
    played = begun()
    played.demand(0, [1, 5])
    trace = played.trace()
    before = copy.deepcopy(trace)
    sweep(trace, list(POLICIES))
    assert np.array_equal(trace.events, before.events)
    assert np.array_equal(trace.states, before.states)


# ---- tables


def test_a_sweep_has_one_row_for_each_policy_size_and_layer_in_that_order():
    trace = Trace.synthetic("uniform", tokens=50, layers=2, experts=4, top_k=1, seed=0)
    table = sweep(trace, ["fifo", "floor", MRU()], [3, 1])
    names = ["policy", "slots", "layer", "hits", "misses", "hit_rate", "bytes"]
    assert table.columns.tolist() == names
    rows = [(p, k, layer) for p in ("fifo", "floor", "mru") for k in (3, 1) for layer in (0, 1)]
    assert [*table[names[:3]].itertuples(index=False, name=None)] == rows
    assert (table["hits"] + table["misses"]).tolist() == [50] * len(rows)
    assert table["hit_rate"].tolist() == (table["hits"] / 50).tolist()


def test_bytes_are_those_of_each_layers_records():
    played = HandPlayed(layers=2, experts=4, slots=2).record()
    for layer in (0, 1):
        played.demand(layer, range(4))
    table = sweep(played.trace(), "lru", 1)
    assert table["bytes"].tolist() == [3 * NBYTES, 3 * (NBYTES + 1)]


def test_a_layer_that_needed_nothing_has_no_hit_rate():
    played = HandPlayed(layers=2, experts=4, slots=2).record()
    played.demand(1, [0])
    table = sweep(played.trace(), ["lru", "floor"], 2)
    assert table["hit_rate"].isna().tolist() == [True, False, True, False]


def test_a_recording_of_nothing_gives_a_table_of_nothing():
    trace = HandPlayed(layers=2, experts=4, slots=2).record().trace()
    assert sweep(trace, "belady")["hits"].sum() == 0
    assert np.isnan(replay(trace).hit_rate)


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_an_executor_changes_no_number(pool):
    trace = Trace.synthetic("zipf", tokens=300, layers=2, experts=8, top_k=2, seed=0)
    names = ["floor", *POLICIES, Random(seed=3)]
    with pool(2) as executor:
        assert sweep(trace, names, executor=executor).equals(sweep(trace, names))


# ---- refusals


@pytest.mark.parametrize("slots", [0, 9, [1, 9], [], [2.5], ["2"], -1])
def test_slots_out_of_range_are_refused(slots):
    with pytest.raises(ConfigError, match=r"slots=.*give 1 to 8"):
        sweep(uniform(10), "lru", slots)


@pytest.mark.parametrize("policies", ["best", ["lru", "best"], [], [3]])
def test_an_unknown_policy_is_refused(policies):
    with pytest.raises(ConfigError, match=r"policies=.*give some of lru, .*, floor"):
        sweep(uniform(10), policies)


def test_a_replay_of_an_unknown_policy_or_size_is_refused():
    with pytest.raises(ConfigError, match="policy='best'"):
        replay(uniform(10), "best")
    with pytest.raises(ConfigError, match=r"slots=\[9\]"):
        replay(uniform(10), slots=9)


@pytest.mark.parametrize("ask", [sweep, replay])
def test_a_trace_whose_recording_goes_on_is_refused(ask):
    with pytest.raises(TraceError, match="empty until its recording ends"):
        ask(Trace())


@pytest.mark.parametrize("ask", [sweep, replay])
def test_a_trace_without_a_start_is_refused(ask):
    trace = Trace.synthetic("uniform", tokens=5, layers=2, experts=8, top_k=2, seed=5)
    trace.states = trace.states[:1]
    with pytest.raises(TraceError, match="start"):
        ask(trace)


def test_a_recording_of_a_users_policy_is_replayed_when_it_is_given():
    played = HandPlayed(layers=1, experts=4, slots=2, policy=MRU()).record()
    for needed in ([0], [3], [1], [2], [0]):
        played.demand(0, needed)
    trace = played.trace()
    with pytest.raises(TraceError, match="the recorded policy is 'mru'"):
        replay(trace)
    assert replay(trace, MRU()).hit.tolist() == played.hits
