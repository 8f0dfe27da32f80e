"""A policy's memory gets the same calls in a live cache and in a replay, and serves queues."""

import csv
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixoff.policies import LRU, Memory, Policy, Residency, policy_named
from mixoff.simulate import replay, sweep
from mixoff.trace import Trace
from support.queue_policies import S3FIFO, Clock, Sieve
from support.recordings import HandPlayed, traced
from support.tiers import examples, tiered

DATA = Path(__file__).parents[1] / "data" / "policies"
EXPERTS, LAYERS = 6, 2


class LRFU(Policy):
    def scores(self, seen):
        return seen.recent


class LFRU(Policy):
    def scores(self, seen):
        return seen.count / (seen.age + 1)


QUEUES = {"clock": Clock, "sieve": Sieve, "s3-fifo": S3FIFO}
OWN = QUEUES | {"lrfu": LRFU, "lfru": LFRU}
every_queue = pytest.mark.parametrize("make", QUEUES.values(), ids=QUEUES)
every_own = pytest.mark.parametrize("make", OWN.values(), ids=OWN)


# ---- hits computed by others


@cache
def stream(name: str) -> tuple[list[list[list[int]]], int]:
    """Return the demands of each layer, and the number of experts."""
    head, *lines = (DATA / f"{name}.demands.txt").read_text(encoding="utf-8").splitlines()
    layers: dict[int, list[list[int]]] = {}
    for line in lines:
        _, layer, *needed = line.split()
        layers.setdefault(int(layer), []).append([int(e.split(":")[0]) for e in needed])
    return [layers[layer] for layer in sorted(layers)], int(head.split()[1])


def exact_hits(name: str) -> dict[str, dict[tuple[int, int], int]]:
    """Return the hits of each policy by slots and layer."""
    hits: dict[str, dict[tuple[int, int], int]] = {}
    with (DATA / f"{name}.hits.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cell = int(row["slots"]), int(row["layer"])
            hits.setdefault(row["policy"], {})[cell] = int(row["hits"])
    return hits


STREAMS = [(name, policy) for name in ("sticky", "mixed", "layers") for policy in exact_hits(name)]
every_stream = pytest.mark.parametrize(("name", "policy"), STREAMS)


def made(policy: str) -> Policy:
    return OWN[policy]() if policy in OWN else policy_named(policy)


@every_stream
def test_a_sweep_has_the_exact_hits(name, policy):
    expected = exact_hits(name)[policy]
    sizes = sorted({slots for slots, _ in expected})
    table = sweep(traced(*stream(name)), made(policy), sizes).set_index(["slots", "layer"])["hits"]
    assert table.to_dict() == expected


@every_stream
def test_a_live_cache_has_the_exact_hits(name, policy):
    layers, experts = stream(name)
    for (slots, layer), hits in exact_hits(name)[policy].items():
        residency = Residency(experts, slots, made(policy), layer)
        assert sum(len(residency.demand(needed).hits) for needed in layers[layer]) == hits


# ---- live and replayed


demands = st.lists(st.integers(0, EXPERTS - 1), max_size=EXPERTS)
forwards = st.lists(st.tuples(st.integers(0, LAYERS - 1), demands), max_size=25)
sizes = st.integers(0, EXPERTS)


@every_own
@settings(max_examples=examples(100))
@given(start=sizes, parts=st.lists(st.tuples(forwards, sizes, demands, demands), max_size=5))
def test_a_replay_hits_what_the_live_cache_hit(make, start, parts):
    played = HandPlayed(layers=LAYERS, experts=EXPERTS, slots=start, policy=make()).record()
    for forward, slots, needed, left in parts:
        for layer, wanted in forward:
            played.demand(layer, wanted, tokens=len(wanted))
        played.cut(1, needed, left={*left[: played.layers[1].num_slots]})
        for layer, wanted in forward:
            played.demand(layer, wanted)
        played.resize(slots)
    trace = played.trace()
    assert replay(trace, make()).hit.tolist() == played.hits


@every_own
@pytest.mark.parametrize("seed", tiered(range(3), {0}))
def test_a_replay_follows_a_long_run_of_resizes_and_interrupted_demands(make, seed):
    chance = np.random.default_rng(seed)
    played = HandPlayed(layers=LAYERS, experts=12, slots=8, policy=make()).record()
    for step in range(600):
        layer, needed = chance.integers(LAYERS), chance.zipf(1.5, chance.integers(1, 9)) % 12
        if step % 11 == 0:
            residents = chance.permutation(12)[: played.layers[layer].num_slots]
            played.cut(layer, needed, left=residents[chance.integers(2) :])
        elif step % 17 == 0:
            played.resize(chance.integers(13))
        else:
            played.demand(layer, needed)
    hit = replay(played.trace(), make()).hit
    assert hit.tolist() == played.hits
    assert 0.2 < hit.mean() < 0.9


@every_own
@given(forward=forwards, slots=st.integers(1, EXPERTS))
def test_a_replay_of_another_size_hits_what_a_live_cache_of_that_size_hits(make, forward, slots):
    recorded = HandPlayed(layers=LAYERS, experts=EXPERTS, slots=EXPERTS).record()
    live = HandPlayed(layers=LAYERS, experts=EXPERTS, slots=slots, policy=make()).record()
    hits = [0] * LAYERS
    for layer, needed in forward:
        recorded.demand(layer, needed)
        hits[layer] += len({*needed} & live.layers[layer].residents)
        live.demand(layer, needed)
    assert replay(recorded.trace(), make(), slots).hits_per_layer == tuple(hits)


def routed(tokens: int = 200) -> Trace:
    return Trace.synthetic("zipf", tokens=tokens, layers=3, experts=8, top_k=2, seed=4)


def test_policies_with_a_memory_and_without_are_swept_together_as_each_alone():
    policies = [Clock(), "lru", Sieve(), "floor", "lfu", S3FIFO()]
    together = sweep(routed(), policies)
    for policy in policies:
        alone = sweep(routed(), policy)
        rows = together[together["policy"] == alone["policy"][0]].reset_index(drop=True)
        assert np.array_equal(rows["hits"], alone["hits"])
    with ThreadPoolExecutor(2) as executor:
        assert sweep(routed(), policies, executor=executor).equals(together)


@every_queue
def test_a_policy_serves_several_caches_without_mixing_them_up(make):
    policy = make()
    first, second = (Residency(8, 3, policy, layer) for layer in range(2))
    alone = Residency(8, 3, make())
    for n in range(40):
        second.demand([n % 5, (3 * n) % 8])
        assert first.demand([n % 7, n % 4]) == alone.demand([n % 7, n % 4])
    table = sweep(routed(), policy)
    assert table.equals(sweep(routed(), policy))


# ---- the calls of a memory


class Noted(Memory):
    """Keeps its calls, as lists of experts."""

    def __init__(self, resident: Any, slots: Any) -> None:
        self.calls: list[tuple[Any, ...]] = [("start", experts_of(resident), slots.tolist())]
        self.slots = slots

    def demanded(self, hits: Any, misses: Any) -> None:
        self.calls.append(("demanded", experts_of(hits), experts_of(misses)))

    def evicted(self, victims: Any, candidates: Any) -> None:
        self.calls.append(("evicted", experts_of(victims), experts_of(candidates)))

    def admitted(self, newcomers: Any) -> None:
        self.calls.append(("admitted", experts_of(newcomers)))


def experts_of(mask: Any) -> list[Any]:
    return np.argwhere(mask).squeeze(-1).tolist() if mask.ndim == 1 else np.argwhere(mask).tolist()


class Noting(Policy):
    """LRU that keeps its memories, to be looked at."""

    def __init__(self) -> None:
        self.memories: list[Noted] = []

    def start(self, resident: Any, slots: Any) -> Memory:
        self.memories.append(Noted(resident, slots))
        return self.memories[-1]

    def scores(self, seen: Any) -> Any:
        assert isinstance(seen.memory, Noted)
        return seen.last_used


class NotingStatic(Noting):
    bypass = True

    def scores(self, seen: Any) -> Any:
        return np.arange(8)


def begun(slots: int, policy: Noting) -> tuple[Residency, list[tuple[Any, ...]]]:
    residency = Residency(8, slots, policy)
    return residency, policy.memories[-1].calls


def test_a_memory_begins_with_the_residents_and_the_slots():
    assert begun(3, Noting())[1] == [("start", [5, 6, 7], [3])]


def test_a_memory_gets_hits_too_and_victims_before_newcomers():
    residency, calls = begun(3, Noting())
    residency.demand([6, 7])
    residency.demand([0, 2, 7])
    assert calls[1:] == [
        ("demanded", [6, 7], []),
        ("demanded", [7], [0, 2]),
        ("evicted", [5], [5, 6]),
        ("admitted", [0]),
        ("evicted", [6], [6]),
        ("admitted", [2]),
    ]


def test_where_only_the_demands_own_are_left_all_residents_but_the_newcomer_are_candidates():
    residency, calls = begun(2, Noting())
    residency.demand([0, 1, 2])
    assert calls[-2:] == [("evicted", [0], [0, 1]), ("admitted", [2])]


def test_a_free_slot_is_filled_without_an_eviction():
    residency, calls = begun(1, Noting())
    residency.resize(2)
    residency.demand([0])
    assert calls[1:] == [("demanded", [], [0]), ("admitted", [0])]


@pytest.mark.parametrize(("slots", "policy"), [(0, Noting()), (3, NotingStatic())])
def test_an_expert_that_passes_by_is_reported_as_a_miss_alone(slots, policy):
    residency, calls = begun(slots, policy)
    residency.demand([1, 4])
    assert calls[1:] == [("demanded", [], [1, 4])]


def test_a_miss_that_is_computed_in_host_memory_is_not_reported():
    residency, calls = begun(2, Noting())
    residency.demand([0, 1, 7], computed=[1])
    assert calls[1:] == [("demanded", [7], [0]), ("evicted", [6], [6]), ("admitted", [0])]


def test_a_resize_changes_the_slots_and_then_evicts_one_after_the_other():
    policy = Noting()
    residency, calls = begun(3, policy)
    assert residency.resize(1) == (5, 6)
    assert calls[1:] == [("evicted", [5], [5, 6, 7]), ("evicted", [6], [6, 7])]
    assert policy.memories[-1].slots.tolist() == [1]


def test_residents_put_in_place_are_reported_as_evictions_and_then_admissions():
    residency, calls = begun(3, Noting())
    residency.residents = [2, 1, 6]
    assert calls[1:] == [
        ("evicted", [5], [5]),
        ("evicted", [7], [7]),
        ("admitted", [1]),
        ("admitted", [2]),
    ]
    residency.residents = [6, 2, 1]
    assert len(calls) == 5


def test_scores_are_taken_anew_within_a_demand():
    class Newest(Noting):
        """Evict what entered last, which only its memory knows before the demand is over."""

        def scores(self, seen: Any) -> Any:
            entered = [event[1][0] for event in seen.memory.calls if event[0] == "admitted"]
            return np.array([-entered.index(e) if e in entered else 1 for e in range(8)])

    residency = Residency(8, 2, Newest())
    assert residency.demand([0, 1, 2, 3]).evictions == ((0, 6), (1, 7), (2, 1), (3, 2))


def test_a_replay_reports_all_sizes_and_layers_at_once():
    policy = Noting()
    trace = traced([[[7], [0]], [[1], [7]]], experts=8)
    sweep(trace, policy, [1, 2])
    calls = policy.memories[-1].calls
    assert calls[0][2] == [[[1], [1]], [[2], [2]]]  # [K, L, 1]
    assert calls[1] == ("demanded", [[0, 0, 7], [1, 0, 7]], [[0, 1, 1], [1, 1, 1]])
    assert calls[2] == ("evicted", [[0, 1, 7], [1, 1, 6]], [[0, 1, 7], [1, 1, 6], [1, 1, 7]])
    assert calls[3] == ("admitted", [[0, 1, 1], [1, 1, 1]])


def test_an_error_of_a_memory_leaves_the_residents_as_they_were():
    class Failing(Noting):
        def scores(self, seen: Any) -> Any:
            if len(seen.memory.calls) == 4:
                raise ZeroDivisionError
            return seen.last_used

    residency = Residency(8, 2, Failing())
    with pytest.raises(ZeroDivisionError):
        residency.demand([0, 1])
    assert residency.residents == {6, 7}
    assert residency.demand([6]).hits == (6,)


def test_a_memory_is_not_part_of_what_is_recorded():
    played = HandPlayed(layers=1, experts=8, slots=3, policy=Noting()).record()
    played.demand(0, [1])
    assert played.layers[0].usage.memory is None


def test_a_policy_without_a_memory_sees_none():
    class Looking(LRU):
        def scores(self, seen: Any) -> Any:
            assert seen.memory is None
            return super().scores(seen)

    Residency(8, 3, Looking()).demand([0])
    assert len(sweep(routed(5), Looking(), 3)) == 3
