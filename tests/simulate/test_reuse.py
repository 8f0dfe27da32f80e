"""Reuse distances are those of a plain program, and bound the hits of LRU."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixoff
from mixoff.errors import ConfigError
from mixoff.trace import Trace
from support.recordings import traced


def plainly(trace: Trace) -> list[tuple[int | None, int | None]]:
    """Return both distances of every needed expert, by looking back demand by demand."""
    demands = trace.demands()
    of = [
        {*demands.expert[first:end].tolist()}
        for first, end in zip(demands.first[:-1], demands.first[1:], strict=True)
    ]
    distances = []
    for number, layer in enumerate(demands.layer):
        for expert in demands.expert[demands.first[number] : demands.first[number + 1]]:
            between: set[int] = set()
            for before in range(number - 1, -1, -1):
                if demands.layer[before] != layer:
                    continue
                if expert in of[before]:
                    distances.append((len(between), len((between | of[before]) - {expert})))
                    break
                between |= of[before]
            else:
                distances.append((None, None))
    return distances


def distances_of(trace: Trace) -> list[tuple[int | None, int | None]]:
    table = mixoff.simulate.reuse_distances(trace)[["fewest", "most"]].astype(object)
    return [*table.where(table.notna(), None).itertuples(index=False, name=None)]


def repeats(trace: Trace, slots: int) -> tuple[np.ndarray, ...]:
    """Return what LRU hits and both distances, of the experts that were needed before."""
    table = mixoff.simulate.reuse_distances(trace)
    known = table["most"].notna().to_numpy()
    hit = mixoff.replay(trace, "lru", slots).hit[known]
    return hit, *(table[name][known].to_numpy(dtype=int) for name in ("fewest", "most"))


def some(routing: str, top_k: int, seed: int = 0) -> Trace:
    return Trace.synthetic(routing, tokens=150, layers=2, experts=8, top_k=top_k, seed=seed)


@pytest.mark.parametrize("routing", ["uniform", "zipf", "sticky", "cyclic", "constant"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_distances_are_what_looking_back_finds(routing, top_k):
    trace = some(routing, top_k)
    assert distances_of(trace) == plainly(trace)


def test_a_companion_counts_in_one_distance_and_not_in_the_other():
    trace = traced([[[0, 1], [2], [0, 1], [0, 3]]], experts=4)
    table = mixoff.simulate.reuse_distances(trace)
    of_zero = table[table["expert"] == 0]
    assert of_zero["fewest"].tolist()[1:] == [1, 0]
    assert of_zero["most"].tolist()[1:] == [2, 1]
    assert table["most"].isna().tolist() == [True, True, True, False, False, False, True]


def test_demands_of_single_experts_have_one_distance():
    table = mixoff.simulate.reuse_distances(some("zipf", top_k=1))
    assert table["fewest"].equals(table["most"])


@pytest.mark.parametrize("slots", range(1, 9))
@pytest.mark.parametrize("routing", ["uniform", "zipf", "sticky", "cyclic"])
def test_lru_hits_single_experts_exactly_if_fewer_others_than_slots_came_between(routing, slots):
    hit, _, most = repeats(some(routing, top_k=1), slots)
    assert hit.tolist() == (most < slots).tolist()


@pytest.mark.parametrize("slots", range(1, 9))
@pytest.mark.parametrize("routing", ["uniform", "zipf", "sticky", "cyclic"])
@pytest.mark.parametrize("top_k", [2, 4])
def test_lru_hits_sets_between_what_both_distances_say(routing, slots, top_k):
    hit, fewest, most = repeats(some(routing, top_k), slots)
    assert hit[most < slots].all()
    assert not hit[fewest >= slots].any()


@given(
    demands=st.lists(st.sets(st.integers(0, 5), min_size=1).map(sorted), min_size=1, max_size=25),
    slots=st.integers(1, 6),
)
def test_prompts_and_tokens_in_any_order_keep_lru_between_both_distances(demands, slots):
    trace = traced([demands], experts=6)
    assert distances_of(trace) == plainly(trace)
    hit, fewest, most = repeats(trace, slots)
    assert hit[most < slots].all()
    assert not hit[fewest >= slots].any()


def test_what_lru_hits_of_sets_can_differ_from_what_either_distance_says():
    hit, fewest, most = repeats(some("uniform", top_k=2), 4)
    assert (most < 4).sum() < hit.sum() < (fewest < 4).sum()


def test_the_plot_shows_the_least_that_lru_hits_of_what_was_needed_before():
    trace = some("zipf", top_k=2)
    table = mixoff.plots.reuse_distance_table(trace, groups=1)
    for slots in range(1, 9):
        hit, _, most = repeats(trace, slots)
        (share,) = table["share"][table["others"] == slots - 1]
        assert share == (most < slots).sum() / len(trace.demands().expert)
        assert share <= hit.sum() / len(trace.demands().expert)


def test_a_cycle_comes_back_after_all_others():
    trace = some("cyclic", top_k=1)
    table = mixoff.plots.reuse_distance_table(trace, groups=2)
    assert table["layers"].unique().tolist() == ["0", "1"]
    assert table["share"][table["others"] < 7].eq(0).all()
    assert table["share"][table["others"] == 7].tolist() == [142 / 150] * 2  # 8 are the first


@pytest.mark.parametrize(
    ("layers", "groups", "names"),
    [(3, 4, ["0", "1", "2"]), (8, 4, ["0-1", "2-3", "4-5", "6-7"]), (5, 2, ["0-2", "3-4"])],
)
def test_layers_are_grouped_with_their_neighbours(layers, groups, names):
    trace = Trace.synthetic("uniform", tokens=9, layers=layers, experts=4, top_k=1, seed=0)
    assert (
        mixoff.plots.reuse_distance_table(trace, groups=groups)["layers"].unique().tolist() == names
    )


def test_no_group_is_refused():
    with pytest.raises(ConfigError, match="groups=0"):
        mixoff.plots.reuse_distance_table(some("zipf", 1), groups=0)
