"""The tables behind plots are right on recordings whose answers are known."""

import math

import numpy as np
import pytest

import mixoff
from mixoff import plots
from mixoff.errors import ConfigError, TraceError
from mixoff.trace import Trace
from support.recordings import HandPlayed, traced


def made(routing: str, *, tokens: int = 400, layers: int = 2, top_k: int = 2) -> Trace:
    return Trace.synthetic(routing, tokens=tokens, layers=layers, experts=8, top_k=top_k, seed=3)


def with_a_prompt() -> Trace:
    """Return a trace of a prompt that needs experts 0, 1, 2 and then tokens 0, 0, 3."""
    played = HandPlayed(layers=1, experts=4, slots=4).record()
    played.demand(0, [0, 1, 2], tokens=9)
    for expert in (0, 0, 3):
        played.demand(0, [expert])
    return played.trace()


def test_use_is_the_share_of_demands_that_need_an_expert():
    table = plots.usage_table(with_a_prompt())
    assert table["needed"].tolist() == [3, 1, 1, 1]
    assert table["share"].tolist() == [3 / 4, 1 / 4, 1 / 4, 1 / 4]


def test_use_by_tokens_leaves_prompts_out():
    table = plots.usage_table(with_a_prompt(), of="tokens")
    assert table["needed"].tolist() == [2, 0, 0, 1]
    assert table["share"].tolist() == pytest.approx([2 / 3, 0, 0, 1 / 3])


@pytest.mark.parametrize("routing", ["uniform", "zipf", "sticky"])
def test_shares_of_a_layer_add_up_to_the_experts_of_a_token(routing):
    shares = plots.usage_table(made(routing)).groupby("layer")["share"].sum()
    assert shares.tolist() == pytest.approx([2, 2])


def test_use_is_what_counting_finds():
    trace = made("zipf")
    frame = trace.to_frame()
    needed = frame[frame["kind"].isin(["hit", "miss"])]
    for row in plots.usage_table(trace).itertuples():
        same = (needed["layer"] == row.layer) & (needed["expert"] == row.expert)
        assert row.needed == same.sum()


def test_a_recording_without_tokens_has_no_use_by_tokens():
    played = HandPlayed(layers=1, experts=4, slots=4).record()
    played.demand(0, [0, 1], tokens=9)
    with pytest.raises(TraceError, match="not every layer had such a demand"):
        plots.usage_table(played.trace(), of="tokens")


def test_use_of_something_else_is_refused():
    with pytest.raises(ConfigError, match="of='words'"):
        plots.usage_table(made("zipf"), of="words")


def test_a_cycle_is_balanced_and_a_constant_is_as_unbalanced_as_can_be():
    even, worst = plots.balance_table(made("cyclic")), plots.balance_table(made("constant"))
    assert even["load"].tolist() == [1, 1]
    assert even["effective_experts"].tolist() == pytest.approx([8, 8])
    assert worst["load"].tolist() == [4, 4]
    assert worst["effective_experts"].tolist() == pytest.approx([2, 2])


def test_the_busiest_of_zipf_is_the_first():
    table = plots.balance_table(made("zipf", top_k=1, tokens=4000))
    assert table["busiest"].tolist() == [0, 0]
    share = 1 / sum(1 / rank for rank in range(1, 9))
    assert table["load"].tolist() == pytest.approx([8 * share] * 2, rel=0.05)


def of_pair(first: Trace, second: Trace) -> float:
    table = plots.usage_divergence_table({"first": first, "second": second})
    (bits,) = table["bits"][(table["one"] == "first") & (table["other"] == "second")]
    return bits


def test_divergence_is_0_of_the_same_use_and_a_bit_without_a_common_expert():
    first = traced([[[0], [1]] * 4], experts=4)
    assert of_pair(first, traced([[[1], [0]] * 8], experts=4)) == pytest.approx(0)
    assert of_pair(first, traced([[[2], [3]] * 8], experts=4)) == pytest.approx(1)


def test_divergence_is_that_of_its_definition():
    first = traced([[[0], [0], [0], [1]]], experts=3)
    second = traced([[[1], [2], [1], [2]]], experts=3)
    pairs = [(3 / 4, 0), (1 / 4, 1 / 2), (0, 1 / 2)]
    both = [(x / 2, (x + y) / 2) for p, q in pairs for x, y in ((p, q), (q, p))]
    expected = sum(half * math.log2(2 * half / mean) for half, mean in both if half)
    assert of_pair(first, second) == pytest.approx(expected)


def test_divergence_is_the_mean_of_layers():
    first = traced([[[0]] * 4, [[1]] * 4], experts=4)
    second = traced([[[0]] * 4, [[2]] * 4], experts=4)
    assert of_pair(first, second) == pytest.approx(1 / 2)


def test_divergence_of_a_recording_from_itself_is_that_of_its_halves():
    table = plots.usage_divergence_table({"text": traced([[[0], [0], [1], [1]]], experts=4)})
    assert table.values.tolist() == [["text", "text", pytest.approx(1)]]


def test_passages_of_one_kind_differ_less_than_two_kinds():
    traces = {"zipf": made("zipf"), "uniform": made("uniform")}
    bits = (
        plots.usage_divergence_table(traces)
        .pivot(index="one", columns="other", values="bits")
        .to_numpy()
    )
    assert bits[0, 1] == bits[1, 0] > 3 * bits.diagonal().max()


def test_models_of_other_shapes_have_no_divergence():
    with pytest.raises(ConfigError, match="give some of one"):
        of_pair(made("zipf"), made("zipf", layers=3))


def test_a_recording_of_one_step_has_no_halves():
    with pytest.raises(TraceError, match="1 steps"):
        plots.usage_divergence_table({"short": made("zipf", tokens=1)})


SWEPT = ["floor", "lru", "lfu", "belady", "belady-bypass"]


def test_what_is_recovered_is_what_arithmetic_says():
    sweep = mixoff.sweep(made("zipf"), SWEPT, [3])
    rate = sweep.groupby("policy")["hits"].sum() / (2 * 2 * 400)
    table = plots.recovered_table(sweep, 3).set_index("policy")
    assert sorted(table.index) == ["belady", "lfu", "lru"]
    for policy, row in table.iterrows():
        gap = rate["belady-bypass"] - rate["floor"]
        assert row["hit_rate"] == pytest.approx(rate[policy])
        assert row["recovered"] == pytest.approx((rate[policy] - rate["floor"]) / gap)


def test_beyond_lru_to_what_admits_lru_and_both_bounds_are_measures():
    sweep = mixoff.sweep(made("zipf"), [*SWEPT, "static"], [3])
    table = plots.recovered_table(sweep, 3, base="lru", bound="belady").set_index("policy")
    won = table["recovered"]
    assert won["belady-bypass"] > 1 > won["lfu"] > 0 > won["static"]  # which keeps the rarest
    assert "lru" not in won


def test_in_a_cycle_no_policy_that_must_admit_reaches_the_floor():
    sweep = mixoff.sweep(made("cyclic", top_k=1), SWEPT, [4])
    table = plots.recovered_table(sweep, 4, base="lru", bound="floor").set_index("policy")
    assert 0 < table.loc["belady", "recovered"] < 1


def test_where_there_is_no_gap_nothing_is_recovered():
    table = plots.recovered_table(mixoff.sweep(made("cyclic"), SWEPT, [4]), 4)
    assert table["recovered"].isna().all()


@pytest.mark.parametrize("wrong", [{"slots": 3}, {"bound": "fifo"}, {"base": "fifo"}])
def test_what_the_sweep_lacks_is_refused(wrong):
    sweep = mixoff.sweep(made("zipf"), SWEPT, [4])
    with pytest.raises(ConfigError, match=r"the sweep has"):
        plots.recovered_table(sweep, **{"slots": 4, **wrong})


def test_layers_are_shown_at_a_quarter_a_half_and_three_quarters_of_the_experts():
    sweep = mixoff.sweep(made("zipf"), ["lru", "belady"])
    table = plots.layer_hit_rate_table(sweep)
    assert table["slots"].unique().tolist() == [2, 4, 6]
    assert len(table) == 3 * 2 * 2
    for row in table.itertuples():
        same = (sweep[["policy", "slots", "layer"]] == [row.policy, row.slots, row.layer]).all(
            axis=1
        )
        assert row.hit_rate == sweep["hit_rate"][same].item()


def test_slots_are_shown_in_the_order_that_was_given():
    sweep = mixoff.sweep(made("zipf"), "lru")
    assert plots.layer_hit_rate_table(sweep, slots=[5, 3])["slots"].tolist() == [5, 5, 3, 3]
    with pytest.raises(ConfigError, match="slots=9"):
        plots.layer_hit_rate_table(sweep, slots=[9])


def test_kinds_have_the_hit_rates_of_their_sweeps_and_the_floor_is_last():
    traces = {"a": made("zipf"), "b": made("uniform")}
    table = plots.kind_hit_rate_table(traces, policy="lfu")
    for kind, trace in traces.items():
        sums = mixoff.sweep(trace, "lfu").groupby("slots")[["hits", "misses"]].sum()
        expected = (sums["hits"] / sums.sum(axis=1)).tolist()
        assert table["hit_rate"][table["kind"] == kind].tolist() == expected
    floor = table[table["kind"] == "floor"]
    assert floor["hit_rate"].tolist() == pytest.approx(np.arange(1, 9) / 8)
    assert table["kind"].iloc[-1] == "floor"


def test_no_kind_is_refused():
    with pytest.raises(ConfigError, match="give one recording or more"):
        plots.kind_hit_rate_table({})
    with pytest.raises(ConfigError, match="give some of one"):
        plots.usage_divergence_table({})
