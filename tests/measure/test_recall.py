"""Recall is the share of needed experts that were guessed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixoff import build_model, measure
from mixoff.errors import ConfigError
from mixoff.measure.recall import watch_routers
from mixoff.predictors.registry import PREDICTORS
from support.tiny import EXACT, random_mixtral

LAYERS, EXPERTS, TOKENS = 4, 8, 24


@pytest.fixture
def model(quantized: Callable[..., Path]) -> torch.nn.Module:
    return build_model(quantized(EXACT, num_hidden_layers=LAYERS))[0]


@pytest.fixture
def windows() -> list[torch.Tensor]:
    return [*torch.randint(256, (2, TOKENS), generator=torch.Generator().manual_seed(1))]


def test_the_router_itself_guesses_all_experts_of_a_token(model, windows):
    table = measure.recall(model, windows, predictors=["next-gate"], layers_ahead=[0])
    recall = table.pivot_table("recall", "layer", "guesses")
    assert (recall[[2, 3, 4]] == 1.0).all(axis=None)
    assert (recall[1] == 0.5).all()


def test_every_predictor_guesses_all_needed_experts_when_it_guesses_all_experts(model, windows):
    table = measure.recall(model, windows, guesses=[EXPERTS], layers_ahead=[1])
    gate = table[table["predictor"] == "next-gate"]
    assert (gate["recall"] == 1.0).all()
    history = table[table["predictor"] != "next-gate"]
    without_the_first = 1 - 1 / (2 * TOKENS)  # for which history has no scores
    assert history["recall"].tolist() == pytest.approx([without_the_first] * len(history))


def test_there_is_a_row_for_each_predictor_distance_number_and_layer_of_the_model(model, windows):
    table = measure.recall(model, windows, guesses=[3, 1], layers_ahead=[1, 2, 4])
    assert [*table] == ["predictor", "layers_ahead", "guesses", "layer", "recall", "chance"]
    assert len(table) == len(PREDICTORS) * 2 * ((LAYERS - 1) + (LAYERS - 2))
    ahead = table.groupby("layers_ahead")["layer"].agg(["min", "max"])
    assert ahead.to_numpy().tolist() == [[1, 3], [2, 3]]
    assert table["recall"].between(0, 1).all()


def test_chance_is_the_share_of_the_experts_that_are_guessed(model, windows):
    table = measure.recall(model, windows, predictors=["frequency"], layers_ahead=[1])
    assert (table["chance"] == table["guesses"] / EXPERTS).all()


def test_frequency_guesses_the_expert_that_every_token_chooses(quantized, windows):
    model, _ = build_model(quantized(EXACT, favourite=5))
    table = measure.recall(model, windows, predictors=["frequency"], guesses=[1], layers_ahead=[1])
    assert table["recall"].tolist() == pytest.approx([0.5 * (1 - 1 / (2 * TOKENS))])


def test_hooks_are_removed_afterwards(model, windows):
    measure.recall(model, windows)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_without_a_cache_is_refused(windows):
    with (
        pytest.raises(ConfigError, match="no experts behind a cache"),
        watch_routers(random_mixtral()),
    ):
        pass


def test_no_text_is_refused(model):
    with pytest.raises(ConfigError, match="windows is empty: give one or more"):
        measure.recall(model, [])


def test_an_unknown_predictor_is_refused(model, windows):
    with pytest.raises(ConfigError, match="oracle"):
        measure.recall(model, windows, predictors=["oracle"])
