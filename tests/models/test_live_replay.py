"""A replay of a recording is the live run hit for hit; and no setting changes the logits."""

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mixoff
from mixoff.cache.cache import ExpertCache
from mixoff.config import OffloadConfig
from mixoff.models.build import build_model
from mixoff.policies.base import Policy
from mixoff.policies.registry import LIVE_POLICIES
from mixoff.predictors import PREDICTORS
from mixoff.predictors.base import Predictor
from mixoff.trace import Trace
from support.models import run, tokens
from support.queue_policies import S3FIFO, Clock, Sieve
from support.tiers import diagonal

LAYERS, EXPERTS = 4, 8

Built = Callable[..., tuple[Any, ExpertCache]]


class Wrong(Predictor):
    """Guess the experts to which the next gate gives the lowest probability."""

    def __init__(self, gates: Any) -> None:
        self._gates = gates

    def scores(self, layer: int, target: int, hidden_states: Tensor) -> Tensor:
        return -torch.nn.functional.linear(hidden_states, self._gates[target].weight)


@pytest.fixture
def built(quantized: Callable[..., Path]) -> Iterator[Built]:
    """Return a function that builds a tiny model with a number of slots."""
    caches = []

    def build(slots: int = 4, **options: Any) -> tuple[Any, ExpertCache]:
        offload = OffloadConfig(offload_per_layer=EXPERTS - slots, **options)
        model, cache = build_model(quantized(num_hidden_layers=LAYERS, top_k=3), offload)
        caches.append(cache)
        return model, cache

    yield build
    for cache in caches:
        cache.close()


def check(trace: Trace, hits: tuple[int, ...], policy: Policy | None = None) -> None:
    """Check that a replay of the recorded policy, by default one of mixoff's, is the live run."""
    replayed = mixoff.replay(trace, policy)
    assert replayed.hit.tolist() == trace.demands().hit.tolist()
    assert replayed.hits_per_layer == hits


@pytest.mark.parametrize(("policy", "prefetch"), diagonal(LIVE_POLICIES, [0, 2]))
def test_a_replay_is_the_live_run_from_its_start_and_from_its_middle(built, policy, prefetch):
    for slots in range(EXPERTS + 1):
        model, cache = built(slots, policy=policy, prefetch=prefetch)
        with cache.record() as whole:
            run(model)
            between = cache.stats()
            with cache.record() as half:
                run(model, tokens.flip(1))
        check(whole, cache.stats().hits_per_layer)
        check(half, (cache.stats() - between).hits_per_layer)
        assert cache.stats().misses > 0 or slots == EXPERTS
        cache.close()


@pytest.mark.parametrize(
    ("policy", "prefetch", "slots"), [("lru", 0, 4), ("lfu", 2, 2), ("random", 2, 7)]
)
def test_a_replay_is_the_live_run_of_the_demo_model(policy, prefetch, slots):
    offload = OffloadConfig(offload_per_layer=8 - slots, policy=policy, prefetch=prefetch)
    model, cache = build_model(mixoff.demo_path(), offload)
    with closing(cache):
        run(model)
        before = cache.stats()
        with cache.record() as trace:
            run(model, tokens.flip(1))
        check(trace, (cache.stats() - before).hits_per_layer)


def eventful(model: Any, cache: ExpertCache) -> Trace:
    """Return the trace of a run with resizes and demands that were interrupted."""
    with cache.record() as trace:
        run(model)
        cache.resize(2)
        run(model, tokens.flip(1))
        for layer in range(LAYERS):
            with closing(cache.acquire(layer, range(EXPERTS))) as experts:
                for _ in range(layer):
                    next(experts)
        run(model)
        cache.acquire(1, [0, 3, 5])  # which the resize interrupts
        cache.resize(6)
        run(model, tokens.flip(1))
    return trace


@pytest.mark.parametrize(("policy", "prefetch"), diagonal(LIVE_POLICIES, [0, 2]))
def test_a_replay_follows_resizes_and_interrupted_demands(built, policy, prefetch):
    model, cache = built(4, policy=policy, prefetch=prefetch)
    check(eventful(model, cache), cache.stats().hits_per_layer)


@pytest.mark.parametrize(("make", "prefetch"), diagonal([Clock, Sieve, S3FIFO], [0, 2]))
def test_a_replay_follows_a_policy_with_a_memory_from_the_start_of_its_cache(built, make, prefetch):
    for slots in (0, 1, 4, 7):
        model, cache = built(slots, policy=make(), prefetch=prefetch)
        check(eventful(model, cache), cache.stats().hits_per_layer, make())
        cache.close()


def test_a_trace_from_its_file_has_the_same_replay(built, tmp_path):
    model, cache = built(3, prefetch=2)
    with cache.record() as trace:
        run(model)
    trace.save(tmp_path / "a.trace")
    check(Trace.load(tmp_path / "a.trace"), cache.stats().hits_per_layer)


@pytest.fixture
def usual(built: Built) -> tuple[Tensor, Any]:
    """Return the logits and counts without any prefetch."""
    model, cache = built(4)
    return run(model), cache.stats()


def compare(usual: tuple[Tensor, Any], model: Any, cache: ExpertCache) -> None:
    """Check that logits equal the usual ones bit for bit, and that hits and misses do."""
    assert torch.equal(run(model), usual[0])
    assert cache.stats().hits_per_layer == usual[1].hits_per_layer
    assert cache.stats().misses_per_layer == usual[1].misses_per_layer


@pytest.mark.parametrize(
    ("prefetch", "ahead", "predictor"),
    [*product([0, 1, 2, 4], [1, 2, 3], ["next-gate"]), *product([2], [3], list(PREDICTORS)[1:])],
)
def test_no_guess_changes_logits_hits_or_misses(built, usual, prefetch, ahead, predictor):
    model, cache = built(4, prefetch=prefetch, layers_ahead=ahead, predictor=predictor)
    compare(usual, model, cache)
    stats = cache.stats()
    guessed = stats.prefetch_used + stats.prefetch_late + stats.prefetch_wasted
    assert (guessed > 0) == (prefetch > 0)


def test_wrong_guesses_change_neither_logits_nor_hits_nor_misses(built, usual):
    gates = [layer.mlp.gate for layer in built(4)[0].model.layers]
    model, cache = built(4, prefetch=2, predictor=Wrong(gates))
    compare(usual, model, cache)
    assert cache.stats().prefetch_wasted > cache.stats().prefetch_used


@pytest.mark.parametrize(
    ("options", "prefetch"),
    diagonal(
        [{"staging": 2}, {"io": "direct"}, {"io": "buffered"}, {"host_memory": "1MiB"}], [0, 2]
    ),
)
def test_no_method_of_moving_bytes_changes_logits_hits_or_misses(built, usual, options, prefetch):
    compare(usual, *built(4, prefetch=prefetch, **options))


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_no_number_of_threads_changes_logits_hits_or_misses(built, usual, monkeypatch, threads):
    transfers = mixoff.models.assemble.Transfers
    monkeypatch.setattr("mixoff.models.assemble.Transfers", lambda: transfers(threads))
    compare(usual, *built(4, prefetch=2))


@pytest.mark.parametrize(("policy", "slots"), diagonal(LIVE_POLICIES, [1, 5]))
def test_no_policy_changes_the_logits(built, usual, policy, slots):
    assert torch.equal(run(built(slots, policy=policy, prefetch=1)[0]), usual[0])


def test_a_replay_that_begins_with_other_residents_differs_from_the_live_run(built):
    model, cache = built(4)
    with cache.record() as trace:
        run(model)
    trace.states["resident"] = ~trace.states["resident"]
    assert not np.array_equal(mixoff.replay(trace).hit, trace.demands().hit)
