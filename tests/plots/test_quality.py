"""Pictures of bits, memory, guesses and speed are drawn from the right numbers."""

import pandas as pd
import pytest

import mixoff
from mixoff import plots
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.errors import ConfigError
from support.pictures import plan, published_speeds, recalls, schemes


def test_a_scheme_is_best_if_none_as_small_costs_less():
    table = pd.DataFrame(
        {
            "attention": [16, 4, 4, 2],
            "experts": [16, 4, 2, 2],
            "nbytes": [40, 20, 10, 10],
            "loss": [1.0, 1.0, 1.5, 1.6],
        }
    )
    table = plots.quality_table(table)
    assert table["nbytes"].tolist() == [10, 10, 20, 40]
    assert table["is_best"].tolist() == [True, False, True, False]


def test_of_the_published_schemes_those_of_4_bit_attention_and_the_whole_are_best():
    table = plots.quality_table(schemes())
    best = table[table["is_best"]]
    named = [*zip(best["attention"], best["experts"], strict=True)]
    assert (4, 2) in named
    assert (16, 16) in named
    assert not {(2, 3), (2, 4), (3, 16)} & {*named}


def test_recall_is_the_mean_over_layers_and_chance_comes_last():
    columns = ["predictor", "layers_ahead", "guesses", "layer", "recall", "chance"]
    rows = [("next-gate", 1, 2, 1, 0.5, 0.25), ("next-gate", 1, 2, 2, 0.7, 0.25)]
    table = plots.recall_table(pd.DataFrame(rows, columns=columns))
    assert table["predictor"].tolist() == ["next-gate", "chance"]
    assert table["recall"].tolist() == pytest.approx([0.6, 0.25])
    assert table["layers_ahead"].tolist() == [1, pd.NA]


def test_a_line_of_recall_is_named_after_its_distance():
    axes = mixoff.plots.recall(recalls())
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["1 layer ahead", "2 layers ahead", "4 layers ahead", "chance"]


def test_the_published_speeds_fall_with_every_part_that_is_taken_away():
    table = plots.relative_speed_table(published_speeds())
    wide = table.pivot(index="algorithm", columns="machine", values="relative_speed")
    assert (wide.loc["full"] == 1).all()
    assert wide.loc["naive offloading (accelerate)", "T4 (Colab)"] == pytest.approx(0.661 / 2.092)


def test_speed_is_that_of_the_median_round():
    rows = [("here", "full", 8), ("here", "none", 1), ("here", "none", 2), ("here", "none", 90)]
    table = pd.DataFrame(rows, columns=["machine", "algorithm", "tokens_per_second"])
    assert plots.relative_speed_table(table)["relative_speed"].tolist() == [1, 0.25]


def test_a_machine_without_the_first_algorithm_is_refused():
    rows = [("here", "full", 8), ("there", "none", 1)]
    table = pd.DataFrame(rows, columns=["machine", "algorithm", "tokens_per_second"])
    with pytest.raises(ConfigError, match="there: 'full' was not measured"):
        plots.relative_speed_table(table)


def test_a_frame_without_a_column_is_refused_by_its_name():
    with pytest.raises(ConfigError, match="without kl"):
        plots.quality_table(schemes(), "kl")


def test_parts_that_take_nothing_are_not_drawn():
    table = plots.memory_table(pd.concat([plan(), plan().assign(part="none", nbytes=0)]))
    assert "none" not in [*table["part"]]
    assert table["nbytes"].tolist() == plan()["nbytes"].tolist()


def test_a_plans_frame_has_its_sums():
    checkpoint = open_checkpoint(mixoff.demo_path())
    made = mixoff.plan_memory(checkpoint, mixoff.OffloadConfig(offload_per_layer=3))
    sums = made.to_frame().groupby("tier")["nbytes"].sum()
    assert sums["device"] == made.device_nbytes
    assert sums["host"] == made.host_nbytes
    assert sums["disk"] == made.disk
