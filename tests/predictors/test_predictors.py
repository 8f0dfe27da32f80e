"""Predictors guess what their definitions say, for the right layers, and keep no model alive."""

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixoff.cache.cache import ExpertCache
from mixoff.cache.prefetcher import Prefetcher
from mixoff.config import OffloadConfig
from mixoff.errors import ConfigError
from mixoff.models.build import build_model
from mixoff.models.layers.experts import OffloadedExperts
from mixoff.predictors.base import Predictor
from mixoff.predictors.history import Frequency, Markov, PreviousToken
from mixoff.predictors.next_gate import NextGate
from mixoff.predictors.registry import PREDICTORS, predictor_named
from support.tiny import VOCAB

LAYERS, EXPERTS, WIDTH = 3, 4, 5
ids = torch.randint(VOCAB, (1, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gates() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(WIDTH, EXPERTS, bias=False).requires_grad_(False) for _ in range(LAYERS)]


def row(predictor: Predictor, target: int, layer: int = 0) -> list[float] | None:
    """Return a predictor's scores for one token."""
    scores = predictor.scores(layer, target, torch.zeros(1, WIDTH))
    return None if scores is None else scores[0].tolist()


def test_the_next_gate_is_the_gate_applied_by_hand(gates):
    hidden = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(2))
    predictor = NextGate(gates)
    for layer in range(LAYERS):
        for target in range(layer, LAYERS):
            scores = predictor.scores(layer, target, hidden)
            by_hand = torch.softmax(hidden @ gates[target].weight.T, dim=-1)
            torch.testing.assert_close(scores, by_hand)


def test_the_next_gate_knows_nothing_of_the_next_token(gates):
    assert NextGate(gates).scores(2, 0, torch.zeros(1, WIDTH)) is None


@pytest.mark.parametrize("kind", [PreviousToken, Frequency, Markov])
def test_without_history_there_is_no_guess(gates, kind):
    predictor = kind(gates)
    predictor.observe(0, [[1, 2]])
    assert row(predictor, 1) is None
    assert row(predictor, 0) is not None


def test_the_previous_token_is_that_of_the_same_layer(gates):
    predictor = PreviousToken(gates)
    predictor.observe(0, [[0, 1], [2, 3]])
    predictor.observe(1, [[1, 2]])
    assert row(predictor, 0) == [0, 0, 1, 1]
    assert row(predictor, 1) == [0, 1, 1, 0]
    predictor.observe(0, [[0, 3]])
    assert row(predictor, 0) == [1, 0, 0, 1]


def test_the_frequency_counts_every_token_of_its_layer(gates):
    predictor = Frequency(gates)
    predictor.observe(0, [[0, 1], [1, 2]])
    predictor.observe(1, [[3, 0]])
    predictor.observe(0, [[1, 0]])
    assert row(predictor, 0) == [2, 3, 1, 0]
    assert row(predictor, 1) == [1, 0, 0, 1]


def test_the_chain_says_what_followed_and_not_what_was_frequent(gates):
    predictor = Markov(gates)
    for chosen in ([0], [1], [0], [1], [0], [1], [2], [2], [2], [2], [0]):
        predictor.observe(0, [chosen])
    said = row(predictor, 0)
    assert said is not None
    assert max(range(EXPERTS), key=said.__getitem__) == 1
    assert said == pytest.approx([0, 3 / 4, 0, 0])


def test_the_chain_of_a_prompt_is_that_of_its_tokens_one_by_one(gates):
    whole, single = Markov(gates), Markov(gates)
    choices = [[0, 1], [1, 2], [0, 3], [1, 2]]
    whole.observe(0, choices)
    for chosen in choices:
        single.observe(0, [chosen])
    assert row(whole, 0) == row(single, 0)


@pytest.mark.parametrize("kind", [PreviousToken, Frequency, Markov])
def test_history_gives_every_token_a_row(gates, kind):
    predictor = kind(gates)
    predictor.observe(2, [[1, 2], [0, 1]])
    scores = predictor.scores(1, 2, torch.zeros(7, WIDTH))
    assert scores.shape == (7, EXPERTS)


def test_every_predictor_has_its_name_and_no_other_has(gates):
    for name, home in PREDICTORS.items():
        made = type(predictor_named(name, gates))
        assert f"{made.__module__}:{made.__qualname__}" == home
    own = NextGate(gates)
    assert predictor_named(own, gates) is own
    with pytest.raises(ConfigError, match="give one of next-gate, previous-token"):
        predictor_named("oracle", gates)
    with pytest.raises(ConfigError, match="give one of next-gate, previous-token"):
        OffloadConfig(predictor="oracle")


class FakeCache:
    """A cache that keeps the requests to prefetch."""

    num_layers, num_experts = LAYERS, EXPERTS

    def __init__(self) -> None:
        self.requested: list[tuple[int, list[int], int]] = []

    def prefetch(self, layer: int, experts: list[int], *, layers_ahead: int) -> None:
        self.requested.append((layer, experts, layers_ahead))


class Fixed(Predictor):
    """Guess expert `target` first, then those after it; keep what is observed."""

    def __init__(self) -> None:
        self.observed: list[tuple[int, object]] = []

    def scores(self, layer: int, target: int, hidden_states: Tensor) -> Tensor:
        return -((torch.arange(EXPERTS) - target) % EXPERTS).float().expand(len(hidden_states), -1)

    def observe(self, layer: int, choices: object) -> None:
        self.observed.append((layer, choices))


@pytest.mark.parametrize(
    ("layer", "ahead", "targets"), [(0, 1, [1]), (0, 2, [1, 2]), (1, 2, [2, 0]), (2, 9, [0, 1])]
)
def test_the_nearest_layers_are_guessed_first_and_the_first_follows_the_last(layer, ahead, targets):
    cache, predictor = FakeCache(), Fixed()
    prefetcher = Prefetcher(cache, predictor, experts=2, layers_ahead=ahead)
    ranked = prefetcher.look_ahead(layer, torch.zeros(3, WIDTH))
    lists = {distance: experts.tolist() for distance, experts in ranked.items()}
    prefetcher.prefetch(layer, [[0, 1]] * 3, lists)
    assert cache.requested == [(t, [t, (t + 1) % 4], n + 1) for n, t in enumerate(targets)]
    assert predictor.observed == [(layer, [[0, 1]] * 3)]


def test_no_more_experts_are_guessed_than_there_are(gates):
    prefetcher = Prefetcher(FakeCache(), NextGate(gates), experts=9)
    assert len(prefetcher.look_ahead(0, torch.zeros(2, WIDTH))[1]) == EXPERTS


@pytest.fixture
def built(quantized: Callable[..., Path]) -> Callable[..., tuple[Any, ExpertCache]]:
    def build(**options: Any) -> tuple[Any, ExpertCache]:
        path = quantized(num_hidden_layers=LAYERS)
        return build_model(path, OffloadConfig(offload_per_layer=4, **options))

    return build


def test_the_gate_of_a_layer_itself_guesses_all_that_its_router_chooses(built):
    model, cache = built()
    predictor = NextGate([layer.mlp.gate for layer in model.model.layers])
    right = []

    def look(module: OffloadedExperts, arguments: tuple[Tensor, ...]) -> None:
        hidden, chosen = arguments[:2]
        guessed = predictor.scores(module.layer, module.layer, hidden).topk(2).indices
        right.extend((guessed.sort().values == chosen.sort().values).flatten().tolist())

    for module in model.modules():
        if isinstance(module, OffloadedExperts):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        model(ids)
    assert len(right) == 2 * ids.numel() * LAYERS
    assert all(right)
    cache.close()


@pytest.mark.parametrize("predictor", [*PREDICTORS])
def test_a_predictor_adds_no_parameter_to_the_model(built, predictor):
    plain, cache = built()
    guessing, second = built(prefetch=2, predictor=predictor)
    assert guessing.state_dict().keys() == plain.state_dict().keys()
    names = [name for name, _ in guessing.named_parameters(remove_duplicate=False)]
    assert names == [name for name, _ in plain.named_parameters(remove_duplicate=False)]
    cache.close()
    second.close()


@pytest.mark.parametrize("predictor", [*PREDICTORS])
def test_a_model_that_guesses_is_collected_and_its_thread_ends(built, predictor):
    model, cache = built(prefetch=2, predictor=predictor)
    with torch.no_grad():
        model(ids)
    (thread,) = cache._mover.transfers._threads
    references = weakref.ref(model), weakref.ref(cache)
    del model, cache
    gc.collect()
    assert [ref() for ref in references] == [None, None]
    thread.join(5)
    assert not thread.is_alive()
    assert thread not in threading.enumerate()


def test_residents_are_passed_over_by_a_models_guesses(built):
    model, cache = built(prefetch=2)
    with cache.record() as trace, torch.no_grad():
        cache.resize(8)
        for layer in range(LAYERS):
            for _ in cache.acquire(layer, range(8)):
                pass
        model(ids)
    guesses = trace.to_frame().query("kind == 'prefetch'")
    assert len(guesses) == 0
    cache.close()
