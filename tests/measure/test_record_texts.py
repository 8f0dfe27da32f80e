"""A recording of a text holds the experts that the model's router chooses for its tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mixoff import OffloadConfig, build_model
from mixoff.errors import ConfigError
from mixoff.measure import record_texts
from mixoff.measure.recall import watch_routers
from support.tiny import EXACT

LAYERS = 3


class Letters:
    """A tokenizer: a letter is a token."""

    def __call__(self, text: str, **settings: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 256 for letter in text]}


@pytest.fixture
def model(quantized: Callable[..., Path]) -> torch.nn.Module:
    offload = OffloadConfig(offload_per_layer=4)
    return build_model(quantized(EXACT, num_hidden_layers=LAYERS), offload)[0]


def chosen(model: torch.nn.Module, text: str) -> list[list[set[int]]]:
    """Return what each layer's router chooses for each token of a text that is read at once."""
    ids = torch.tensor(Letters()(text)["input_ids"])[None]
    with watch_routers(model) as watched, torch.inference_mode():
        model(input_ids=ids, use_cache=False)
    return [[{*experts} for experts in choices] for _, choices in watched.layers]


def recorded(trace: Any) -> list[list[set[int]]]:
    demands = trace.demands()
    layers: list[list[set[int]]] = [[] for _ in range(LAYERS)]
    for number, layer in enumerate(demands.layer):
        experts = demands.expert[demands.first[number] : demands.first[number + 1]]
        layers[layer].append({*experts.tolist()})
    return layers


def test_each_step_has_the_experts_that_the_router_chooses_when_the_whole_text_is_read(model):
    texts = {"prose": "A fox went out.", "sums": "1 + 2 = 3"}
    traces = record_texts(model, Letters(), texts)
    assert [*traces] == ["prose", "sums"]
    for kind, text in texts.items():
        assert (traces[kind].demands().tokens == 1).all()
        assert recorded(traces[kind]) == chosen(model, text[:-1])


def test_tokens_attend_to_their_own_window_only(model):
    (trace,) = record_texts(model, Letters(), {"twice": "a fox a fox !"}, window=6).values()
    layers = recorded(trace)
    assert [layer[:6] for layer in layers] == [layer[6:] for layer in layers]


def test_the_given_number_of_tokens_is_read_of_each_text(model):
    texts = {"long": "many letters", "short": "few"}
    traces = record_texts(model, Letters(), texts, tokens=4)
    assert {kind: trace.num_steps for kind, trace in traces.items()} == {"long": 4, "short": 2}


def test_a_recording_names_its_text_and_can_be_saved(model, tmp_path):
    trace = record_texts(model, Letters(), {"prose": "A fox."})["prose"]
    assert trace.provenance["text"] == "prose"
    assert trace.provenance["teacher_forced"] is True
    trace.save(tmp_path / "fox.trace")


@pytest.mark.parametrize(
    ("texts", "message"),
    [({}, "texts is empty"), ({"short": "a"}, "a text of 1 tokens")],
    ids=["no-text", "one-token"],
)
def test_nothing_to_read_is_refused(model, texts, message):
    with pytest.raises(ConfigError, match=message):
        record_texts(model, Letters(), texts)
