"""A miss that is computed where it lies gives what a fetched one does, and moves nothing."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mixoff
from mixoff.cache.cache import ExpertCache
from mixoff.cache.miss_choice import Candidate, MissChooser
from mixoff.errors import MixoffError, TraceError
from mixoff.kernels import TorchKernels
from mixoff.models.replace import give_kernels
from mixoff.policies.registry import LIVE_POLICIES
from mixoff.simulate.machine import LinkModel, Machine
from mixoff.trace import Trace
from mixoff.trace.timeline import EXPERTS as EXPERTS_MARK
from mixoff.trace.timeline import ON_HOST, spans
from support import beside
from support.models import run, tokens

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
    give_kernels(model, cache, device, host)
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
    _, cache = built()
    assert [*cache.acquire(0, [0])]
    assert cache.residents(0) == {0, 6, 7}
    assert cache.stats().computed == 0


@pytest.mark.parametrize("policy", LIVE_POLICIES)
@pytest.mark.parametrize("miss", ["compute", "auto"])
@pytest.mark.parametrize("host", ["all", "exclusive, some"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_replay_is_the_live_run_one_by_one(built, policy, miss, host, prefetch):
    for slots in (1, 5):
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


def test_a_trace_tells_who_was_computed_for_how_long_and_that_nothing_moved(built):
    model, cache = built()
    warm(cache)
    before = cache.stats()
    with cache.record() as trace:
        run(model)
    stats = cache.stats() - before
    table = trace.to_frame()
    computed = table[table.outcome == "computed"]
    assert len(computed) == stats.computed == stats.misses > 0
    assert set(computed.kind) == {"miss"}
    assert set(computed.tier) == {"host"}
    assert computed.nbytes.sum() == 0
    assert not len(table[table.kind.isin(["copy", "eviction"])])
    lasted = (computed.duration_ms - computed.wait_ms).sum()
    assert lasted == pytest.approx(stats.computed_ns / 1e6)
    for sums in trace.per_token(), trace.per_layer():
        assert sums.computed.sum() == stats.computed
        assert sums.computed_ms.sum() == pytest.approx(lasted)
    assert trace.provenance["miss"] == "compute"


def test_a_replay_with_other_slots_fetches_what_it_misses(built):
    model, cache = built()
    warm(cache)
    with cache.record() as trace:
        run(model)
        run(model, tokens.flip(1))
    fetching = mixoff.sweep(trace, "lru", 3)["hits"].sum()
    assert mixoff.replay(trace, "lru", 3).hit.sum() == fetching
    assert fetching != trace.demands().hit.sum()
    assert mixoff.replay(trace, "lru").hit.sum() == trace.demands().hit.sum()


def test_what_is_computed_begins_while_others_are_still_to_come(built):
    _, cache = built(host_buffers=LAYERS * 3 + 1, threads=0)
    [*cache.acquire(0, [3])]  # beside those that start on the device it takes the last place
    [*cache.acquire(0, [0, 1, 2])]
    assert cache.residents(0) == {0, 1, 2}
    with cache.record() as trace:
        arriving = cache.acquire(0, [0, 3, 4])
        assert arriving.computed == {3}
        came = []
        for expert, _ in arriving:
            came.append(expert)
            under_way = cache._server.present.coming
            assert [c.is_ready for c in under_way.values()] == [False] * (len(came) < 3)
    assert came == [0, 3, 4], "the resident, then the computed one, then the one from disk"
    check_replay(trace)


def test_a_guess_that_has_come_is_used_and_given_its_slot(built):
    _, cache = built(threads=0)
    warm(cache)
    guessed, other, computed = sorted(set(range(EXPERTS)) - cache.residents(0))[:3]
    cache.prefetch(0, [guessed, other])
    while cache._mover.transfers.step():
        pass
    before = cache.stats()
    arriving = cache.acquire(0, [guessed, computed])
    assert arriving.computed == {computed}
    assert [expert for expert, _ in arriving] == [guessed, computed]
    stats = cache.stats() - before
    assert (stats.computed, stats.prefetch_used, stats.misses) == (1, 1, 2)
    assert guessed in cache.residents(0)
    assert computed not in cache.residents(0)


def test_a_guess_that_is_still_to_come_is_dropped_for_what_is_computed(built):
    _, cache = built(threads=0)
    warm(cache)
    cache.prefetch(0, [0])
    arriving = cache.acquire(0, [0])
    assert arriving.computed == {0}
    assert [*arriving]
    assert cache.stats().prefetch_wasted == 1
    assert 0 not in cache.residents(0)


def test_an_error_in_the_middle_leaves_everything_usable(built, fetched):
    class Failing(TorchKernels):
        def matmul(self, matrix: Any, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    model, cache = built()
    warm(cache)
    give_kernels(model, cache, TorchKernels(), Failing())
    residents = [cache.residents(layer) for layer in range(LAYERS)]
    with cache.record() as trace:
        with pytest.raises(RuntimeError, match="no"):
            run(model)
        give_kernels(model, cache, TorchKernels(), TorchKernels())
        assert torch.equal(run(model), fetched)
    check_replay(trace)
    assert [cache.residents(layer) for layer in range(LAYERS)] == residents
    assert not cache._mover.host._lent


def test_what_an_interrupted_demand_was_to_compute_is_fetched(built):
    _, cache = built(inclusive=False, host_buffers=LAYERS * 5)
    warm(cache)
    outside = sorted(set(range(EXPERTS)) - cache.residents(0))[:3]
    first = cache.acquire(0, outside)
    assert first.computed == set(outside)
    given = next(first)[0]
    [*cache.acquire(0, outside)]
    assert first.computed == {given}
    assert sorted(expert for expert, _ in first) == outside[1:]
    del first
    assert not cache._mover.host._lent


@pytest.mark.parametrize("ended", ["closed", "dropped", "left alone", "cache closed"])
def test_however_a_demand_ends_nothing_stays_borrowed(built, ended):
    _, cache = built()
    warm(cache)
    arriving = cache.acquire(0, range(EXPERTS))
    assert len(arriving.computed) == EXPERTS - 3
    assert len(cache._mover.host._lent) == EXPERTS - 3
    if ended == "cache closed":
        for _ in range(4):
            next(arriving)
        cache.close()
        with pytest.raises(MixoffError, match="closed"):
            next(arriving)
    elif ended == "left alone":
        cache.acquire(0, ()).close()
    else:
        for _ in range(4):
            next(arriving)
        arriving.close() if ended == "closed" else None
        del arriving
    assert not cache._mover.host._lent


class Watched(MissChooser):
    """A choice that knows one copy to take 2.5 ms, and a token 1 ms, and that is watched."""

    def __init__(self, nbytes: int) -> None:
        super().__init__("auto")
        self.told, self.made = 0, []
        for _ in range(3):
            super().note_computed(1, 1e-3)
            super().note_fetched(nbytes, 2.5e-3)

    def computed(self, candidates: Iterable[Candidate], queued: int = 0) -> frozenset[int]:
        chosen = super().computed(candidates, queued)
        self.made += [(candidate.tokens, candidate.expert in chosen) for candidate in candidates]
        return chosen

    def note_fetched(self, nbytes: int, seconds: float) -> None:
        self.told += 1

    def note_computed(self, tokens: int, seconds: float) -> None:
        pass


def test_by_itself_it_computes_what_few_tokens_chose_and_fetches_what_many_did(built):
    model, cache = built(miss="auto")
    warm(cache)
    watched = cache._server._choice = Watched(cache._mover.nbytes((0, 0)))
    with cache.record() as trace:
        run(model, prompt=8)
    assert {computed for tokens, computed in watched.made if tokens == 1} >= {True}
    assert {computed for tokens, computed in watched.made if tokens > 2} >= {False}
    assert watched.told > 0, "copies show what they take"
    assert trace.demands().computed.sum() == sum(computed for _, computed in watched.made)
    check_replay(trace)


def test_what_was_computed_has_a_lane_of_its_own_and_no_token_waits_for_it(built, tmp_path):
    model, cache = built()
    warm(cache)
    with cache.record() as trace:
        run(model)
    lanes = [span for span in spans(trace.events) if span.lane.startswith(ON_HOST)]
    assert len(lanes) == trace.demands().computed.sum() > 0
    starts = [span.start_ns for span in lanes]
    assert starts == sorted(starts), "one after the other"
    shown = mixoff.plots.timeline_table(trace)
    assert set(shown[shown.lane == ON_HOST].mark) == {EXPERTS_MARK}
    step = int(trace.per_token().computed.argmax())
    number = trace.per_token().computed[step]
    assert f"Misses computed in host memory: {number}, " in trace.explain(step)
    trace.to_chrome(tmp_path / "a.json")
    assert ON_HOST in (tmp_path / "a.json").read_text()


def test_no_machine_is_fitted_to_what_was_computed(built):
    model, cache = built()
    warm(cache)
    with cache.record() as trace:
        run(model)
    with pytest.raises(TraceError, match="record with miss='fetch'"):
        Machine.fit(trace, LinkModel(0.0, 1e9))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("miss", ["compute", "auto"])
def test_on_a_gpu_too_computed_misses_are_close_and_nobody_leaves_for_them(quantized, miss):
    folder = quantized(num_hidden_layers=LAYERS, top_k=TOP_K)
    options = {"offload_per_layer": 5, "host_memory": "64MiB"}
    usual, _ = mixoff.build_model(folder, mixoff.OffloadConfig(**options), device="cuda")
    offload = mixoff.OffloadConfig(miss=miss, **options)
    model, cache = mixoff.build_model(folder, offload, device="cuda")
    warm(cache)
    ids = tokens.cuda()
    with cache.record() as trace:
        found = run(model, ids)
    torch.testing.assert_close(found, run(usual, ids), rtol=0, atol=2e-3)
    check_replay(trace)
    if miss == "compute":
        assert trace.demands().computed.sum() == (~trace.demands().hit).sum() > 0
