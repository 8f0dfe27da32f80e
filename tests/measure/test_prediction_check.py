"""All settings decode the same reply in every round, and the chat is left as it was."""

import pandas as pd
import pytest

from mixoff import Chat, OffloadConfig, demo_path, load_chat
from mixoff.cache import prefetcher_of
from mixoff.chat import Sampling
from mixoff.errors import ConfigError
from mixoff.measure import CacheSetting, check_predictions, record_with_settings
from mixoff.simulate import LinkModel, recorded_speed

SETTINGS = [CacheSetting(2), CacheSetting(4, 2, 2), CacheSetting(8)]


@pytest.fixture(scope="module")
def chat() -> Chat:
    offload = OffloadConfig(offload_per_layer=5, prefetch=1)
    return load_chat(demo_path(), offload, max_new_tokens=6, temperature=0.7, seed=1)


def test_every_round_has_a_recording_of_every_setting(chat):
    rounds = record_with_settings(chat, SETTINGS, "Hello", rounds=2)
    for traces in rounds:
        rows = [recorded_speed(trace).iloc[0] for trace in traces]
        settings = [(row["slots"], row["prefetch"], row["layers_ahead"]) for row in rows]
        assert settings == [(2, 0, 0), (4, 2, 2), (8, 0, 0)]


def test_all_settings_give_the_same_reply(chat):
    (traces,) = record_with_settings(chat, SETTINGS, "Hello", rounds=1)
    first = traces[0].demands()
    for trace in traces[1:]:
        demands = trace.demands()
        assert demands.layer.tolist() == first.layer.tolist()
        for start, end, begin in zip(first.first, first.first[1:], demands.first, strict=False):
            needed = demands.expert[begin : begin + end - start]
            assert sorted(needed) == sorted(first.expert[start:end])


def test_the_chat_is_as_it_was(chat):
    list(chat.send("Hello"))
    record_with_settings(chat, SETTINGS, "Hello", rounds=1)
    prefetcher = prefetcher_of(chat.model)
    assert chat.sampling == Sampling(temperature=0.7, max_new_tokens=6)
    assert (chat.cache.slots_per_layer, prefetcher.experts, prefetcher.layers_ahead) == (3, 1, 1)
    assert not chat.messages


@pytest.mark.parametrize(
    "wrong",
    [{"settings": []}, {"settings": SETTINGS, "rounds": 0}, {"settings": [CacheSetting(9)]}],
    ids=["no-setting", "no-round", "too-many-slots"],
)
def test_invalid_settings_are_refused(chat, wrong):
    with pytest.raises(ConfigError):
        record_with_settings(chat, message="Hello", **wrong)
    assert chat.cache.slots_per_layer == 3


def test_each_setting_has_its_measured_and_its_predicted_speed(chat):
    recall = pd.DataFrame({"layers_ahead": [1, 2], "guesses": 2, "recall": [0.8, 0.6]})
    rounds = record_with_settings(chat, SETTINGS, "Hello", rounds=2)
    table = check_predictions(rounds, LinkModel(0.001, 1e9), recall)
    assert table["setting"].tolist() == [*map(str, SETTINGS)]
    assert table["how"].tolist() == ["fitted", "guesses", "other slots"]
    for column in ("measured", "predicted"):
        assert (table[column] > 0).all()
    assert table["predicted_wait_ms"].iloc[2] == 0  # a slot for every expert
    assert (table["predicted"] / table["measured"] - 1 == table["error"]).all()


def test_guesses_are_not_predicted_without_their_recall(chat):
    rounds = record_with_settings(chat, SETTINGS[:2], "Hello", rounds=1)
    with pytest.raises(ConfigError, match="give recall"):
        check_predictions(rounds, LinkModel(0.001, 1e9))
    known = pd.DataFrame({"layers_ahead": [1], "guesses": 2, "recall": [0.8]})
    with pytest.raises(ConfigError, match="2 ahead wasn't measured"):
        check_predictions(rounds, LinkModel(0.001, 1e9), known)


@pytest.mark.parametrize("layers", [0, 8])
def test_a_guessed_layer_must_follow_another_one(chat, layers):
    with pytest.raises(ConfigError, match="1 to 7 after one"):
        prefetcher_of(chat.model).layers_ahead = layers


def test_a_setting_says_what_it_is():
    assert [*map(str, SETTINGS)] == ["2 slots", "4 slots, 2 guessed 2 ahead", "8 slots"]
