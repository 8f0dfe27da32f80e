"""A miss computed in host memory gives the same result as a fetched one, and moves no bytes."""

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
from support import fake_device_model
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
        model, cache = fake_device_model.build(folder, slots, **options)
        caches.append(cache)
        return model, cache

    yield build
    for cache in caches:
        cache.close()


def warm(cache: ExpertCache) -> None:
    """Fetch every record once, so that host memory holds as many as it can."""
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
def test_any_number_of_tokens_gives_the_logits_of_fetching(built, prompt):
    expected = run(built(miss="fetch")[0], prompt=prompt)
    model, cache = built()
    warm(cache)
    assert torch.equal(run(model, prompt=prompt), expected)
    assert cache.stats().computed > 0


class Counting(TorchKernels):
    """Plain torch with a count of products."""

    products = 0

    def matmul(self, matrix: Any, x: Tensor) -> Tensor:
        self.products += 1
        return super().matmul(matrix, x)


def test_the_host_kernels_multiply_computed_misses_and_the_devices_the_rest(built):
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


def test_with_compiled_kernels_computed_misses_give_the_logits_of_fetched_ones(built):
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


def test_a_miss_that_is_on_disk_is_fetched_and_becomes_resident(built):
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
            stream = cache.acquire(layer, range(EXPERTS))
            for _ in range(layer):
                next(stream)
            stream.close()
        run(model)
        cache.acquire(1, [0, 1, 2, 3])  # cut by the next one
        cache.resize(5)
        run(model, tokens.flip(1))
    check_replay(trace)
    trace.save(tmp_path / "a.trace")
    check_replay(Trace.load(tmp_path / "a.trace"))
    assert Trace.load(tmp_path / "a.trace").demands().computed.any()


def test_a_trace_has_the_computed_misses_with_their_times_and_no_bytes(built):
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


def test_computing_begins_while_other_misses_are_in_flight(built):
    _, cache = built(host_buffers=LAYERS * 3 + 1, threads=0)
    [*cache.acquire(0, [3])]  # with the first residents' records, it fills host memory
    [*cache.acquire(0, [0, 1, 2])]
    assert cache.residents(0) == {0, 1, 2}
    with cache.record() as trace:
        stream = cache.acquire(0, [0, 3, 4])
        assert stream.computed == {3}
        yielded = []
        for expert, _ in stream:
            yielded.append(expert)
            in_flight = cache._state.active.in_flight
            assert [f.is_ready for f in in_flight.values()] == [False] * (len(yielded) < 3)
    assert yielded == [0, 3, 4], "the resident, then the computed one, then the one from disk"
    check_replay(trace)


def test_a_complete_guess_is_used_and_gets_a_slot(built):
    _, cache = built(threads=0)
    warm(cache)
    guessed, unused, computed = sorted(set(range(EXPERTS)) - cache.residents(0))[:3]
    cache.prefetch(0, [guessed, unused])
    while cache._mover.transfers.step():
        pass
    before = cache.stats()
    stream = cache.acquire(0, [guessed, computed])
    assert stream.computed == {computed}
    assert [expert for expert, _ in stream] == [guessed, computed]
    stats = cache.stats() - before
    assert (stats.computed, stats.prefetch_used, stats.misses) == (1, 1, 2)
    assert guessed in cache.residents(0)
    assert computed not in cache.residents(0)


def test_a_guess_in_flight_is_dropped_where_its_miss_is_computed(built):
    _, cache = built(threads=0)
    warm(cache)
    cache.prefetch(0, [0])
    stream = cache.acquire(0, [0])
    assert stream.computed == {0}
    assert [*stream]
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


def test_an_interrupted_demand_fetches_what_it_has_not_computed(built):
    _, cache = built(inclusive=False, host_buffers=LAYERS * 5)
    warm(cache)
    outside = sorted(set(range(EXPERTS)) - cache.residents(0))[:3]
    first = cache.acquire(0, outside)
    assert first.computed == set(outside)
    computed = next(first)[0]
    [*cache.acquire(0, outside)]
    assert first.computed == {computed}
    assert sorted(expert for expert, _ in first) == outside[1:]
    del first
    assert not cache._mover.host._lent


@pytest.mark.parametrize("ended", ["closed", "dropped", "unread", "cache closed"])
def test_however_a_demand_ends_nothing_stays_borrowed(built, ended):
    _, cache = built()
    warm(cache)
    stream = cache.acquire(0, range(EXPERTS))
    assert len(stream.computed) == EXPERTS - 3
    assert len(cache._mover.host._lent) == EXPERTS - 3
    if ended == "cache closed":
        for _ in range(4):
            next(stream)
        cache.close()
        with pytest.raises(MixoffError, match="closed"):
            next(stream)
    elif ended == "unread":
        cache.acquire(0, ()).close()
    else:
        for _ in range(4):
            next(stream)
        stream.close() if ended == "closed" else None
        del stream
    assert not cache._mover.host._lent


class Watched(MissChooser):
    """A choice with a copy's time of 2.5 ms and a token's of 1 ms, and a note of what it chose."""

    def __init__(self, nbytes: int) -> None:
        super().__init__("auto")
        self.fetches, self.choices = 0, []
        for _ in range(3):
            super().note_computed(1, 1e-3)
            super().note_fetched(nbytes, 2.5e-3)

    def computed(self, candidates: Iterable[Candidate], queued: int = 0) -> frozenset[int]:
        chosen = super().computed(candidates, queued)
        self.choices += [(candidate.tokens, candidate.expert in chosen) for candidate in candidates]
        return chosen

    def note_fetched(self, nbytes: int, seconds: float) -> None:
        self.fetches += 1

    def note_computed(self, tokens: int, seconds: float) -> None:
        pass


def test_auto_computes_experts_of_few_tokens_and_fetches_those_of_many(built):
    model, cache = built(miss="auto")
    warm(cache)
    watched = cache._server._chooser = Watched(cache._mover.nbytes((0, 0)))
    with cache.record() as trace:
        run(model, prompt=8)
    assert {computed for tokens, computed in watched.choices if tokens == 1} >= {True}
    assert {computed for tokens, computed in watched.choices if tokens > 2} >= {False}
    assert watched.fetches > 0, "copies are timed"
    assert trace.demands().computed.sum() == sum(computed for _, computed in watched.choices)
    check_replay(trace)


def test_computed_misses_have_a_lane_of_their_own_in_a_timeline(built, tmp_path):
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


def test_no_machine_is_fitted_to_computed_misses(built):
    model, cache = built()
    warm(cache)
    with cache.record() as trace:
        run(model)
    with pytest.raises(TraceError, match="record with miss='fetch'"):
        Machine.fit(trace, LinkModel(0.0, 1e9))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("miss", ["compute", "auto"])
def test_on_a_gpu_computed_misses_are_close_and_evict_no_resident(quantized, miss):
    folder = quantized(num_hidden_layers=LAYERS, top_k=TOP_K)
    options = {"offload_per_layer": 5, "host_memory": "64MiB"}
    fetching, _ = mixoff.build_model(folder, mixoff.OffloadConfig(**options), device="cuda")
    offload = mixoff.OffloadConfig(miss=miss, **options)
    model, cache = mixoff.build_model(folder, offload, device="cuda")
    warm(cache)
    ids = tokens.cuda()
    with cache.record() as trace:
        logits = run(model, ids)
    torch.testing.assert_close(logits, run(fetching, ids), rtol=0, atol=2e-3)
    check_replay(trace)
    if miss == "compute":
        assert trace.demands().computed.sum() == (~trace.demands().hit).sum() > 0
