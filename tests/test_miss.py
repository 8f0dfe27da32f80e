"""A miss that is computed where it lies gives what a fetched one does, and moves nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import beside
import pytest
import torch
from test_live_replay import run, tokens
from torch import Tensor

import mixoff
from mixoff.attachment import give_kernels
from mixoff.cache import ExpertCache
from mixoff.kernels import TorchKernels
from mixoff.policies import LIVE_POLICIES
from mixoff.trace import Trace

LAYERS, EXPERTS, TOP_K = 4, 8, 3
HOSTS = {
    "all": {},
    "exclusive": {"inclusive": False, "host_buffers": LAYERS * 5},
    "some": {"host_buffers": 9},
    "exclusive, some": {"inclusive": False, "host_buffers": 5},
    "none": {"host_buffers": 0},
}

Built = Callable[..., tuple[Any, ExpertCache]]


@pytest.fixture
def built(quantized: Callable[..., Path]) -> Iterator[Built]:
    """Build a tiny model on a fake device with so many slots."""
    caches = []

    def build(slots: int = 3, **options: Any) -> tuple[Any, ExpertCache]:
        folder = quantized(num_hidden_layers=LAYERS, top_k=TOP_K)
        model, cache = beside.build(folder, slots, **options)
        caches.append(cache)
        return model, cache

    yield build
    for cache in caches:
        cache.close()


def warm(cache: ExpertCache) -> None:
    """Have every record in host memory that it has room for, or on the device."""
    for layer in range(cache.num_layers):
        for expert in range(cache.num_experts):
            for _ in cache.acquire(layer, [expert]):
                pass


@pytest.fixture
def fetched(built: Built) -> Tensor:
    """Return the logits where every miss is fetched."""
    return run(built(miss="fetch")[0])


def check_replay(trace: Trace) -> None:
    """Check that a replay is the live run hit for hit."""
    assert mixoff.replay(trace).hit.tolist() == trace.demands().hit.tolist()


@pytest.mark.parametrize("miss", ["compute", "auto"])
@pytest.mark.parametrize("host", HOSTS)
def test_computed_misses_never_change_the_logits(built, fetched, miss, host):
    for seed in range(4):
        model, cache = built(miss=miss, seed=seed, **HOSTS[host])
        warm(cache)
        assert torch.equal(run(model), fetched)
        if host == "none":
            assert cache.stats().computed == 0
        elif miss == "compute":
            assert cache.stats().computed > 0


@pytest.mark.parametrize("slots", [0, 1, 2, 5, 8])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_neither_slots_nor_guesses_change_the_logits(built, fetched, slots, prefetch):
    model, cache = built(slots, prefetch=prefetch)
    warm(cache)
    assert torch.equal(run(model), fetched)


@pytest.mark.parametrize("prompt", [1, 2, 5, 9])
def test_any_number_of_tokens_at_once_gives_what_fetching_gives(built, prompt):
    expected = run(built(miss="fetch")[0], prompt=prompt)
    model, cache = built()
    warm(cache)
    assert torch.equal(run(model, prompt=prompt), expected)
    assert cache.stats().computed > 0


class Counting(TorchKernels):
    """Plain torch, which counts products."""

    products = 0

    def matmul(self, matrix: Any, x: Tensor) -> Tensor:
        self.products += 1
        return super().matmul(matrix, x)


def test_the_cpus_kernels_compute_what_is_computed_and_the_devices_the_rest(built):
    model, cache = built()
    warm(cache)
    device, host = Counting(), Counting()
    give_kernels(model, device, host)
    before = cache.stats()
    run(model)
    stats = cache.stats() - before
    attention = 4 * LAYERS * (tokens.shape[1] - 4 + 1)  # products of a prompt of 4, then 1 by 1
    assert host.products == 2 * stats.computed > 0
    assert device.products == attention + 2 * (stats.hits + stats.misses - stats.computed)


def test_with_compiled_kernels_computed_and_fetched_are_the_same_too(built):
    expected = run(built(miss="fetch", kernels="cpu")[0])
    model, cache = built(kernels="cpu")
    warm(cache)
    assert torch.equal(run(model), expected)
    assert cache.stats().computed > 0


def test_once_all_is_in_host_memory_nothing_moves_and_residents_stay(built):
    model, cache = built()
    warm(cache)
    residents = [cache.residents(layer) for layer in range(LAYERS)]
    before = cache.stats()
    run(model)
    stats = cache.stats() - before
    assert (stats.bytes_moved, stats.computed) == (0, stats.misses)
    assert stats.computed_ns > 0
    assert [cache.residents(layer) for layer in range(LAYERS)] == residents


def test_what_is_on_disk_still_is_fetched_and_let_in(built):
    model, cache = built()
    assert [*cache.acquire(0, [0])]
    assert cache.residents(0) == {0, 6, 7}
    assert cache.stats().computed == 0


@pytest.mark.parametrize("policy", LIVE_POLICIES)
@pytest.mark.parametrize("miss", ["compute", "auto"])
@pytest.mark.parametrize("host", ["all", "exclusive, some"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_replay_is_the_live_run_one_by_one(built, policy, miss, host, prefetch):
    for slots in (0, 1, 3, 7):
        model, cache = built(slots, policy=policy, miss=miss, prefetch=prefetch, **HOSTS[host])
        with cache.record() as whole:
            run(model)
            with cache.record() as half:
                run(model, tokens.flip(1))
        check_replay(whole)
        check_replay(half)
        cache.close()


def test_a_replay_follows_cut_demands_and_resizes(built, tmp_path):
    model, cache = built()
    with cache.record() as trace:
        run(model)
        cache.resize(2)
        for layer in range(LAYERS):
            arriving = cache.acquire(layer, range(EXPERTS))
            for _ in range(layer):
                next(arriving)
            arriving.close()
        run(model)
        cache.acquire(1, [0, 1, 2, 3])  # cut by the one that follows
        cache.resize(5)
        run(model, tokens.flip(1))
    check_replay(trace)
    trace.save(tmp_path / "a.trace")
    check_replay(Trace.load(tmp_path / "a.trace"))
    assert Trace.load(tmp_path / "a.trace").demands().computed.any()
