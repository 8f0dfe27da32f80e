"""Every expert that the cache yields is the one that was requested, and is counted right."""

import copy
import gc
import math
import os
import pickle
import random
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mixoff.cache.cache import ExpertCache, cache_of
from mixoff.cache.stats import CacheStats
from mixoff.config import OffloadConfig
from mixoff.errors import CheckpointError, ConfigError, MixoffError
from mixoff.policies.base import Policy
from mixoff.policies.optimal import Belady, BeladyBypass
from mixoff.simulate.replay import replay
from mixoff.tiers.cpu import CpuMover
from mixoff.tiers.disk import DiskReader
from mixoff.tiers.queue import Transfers
from mixoff.tiers.store import RecordStore
from support.oracle import LRUOracle
from support.stamped import LAYOUT, Files, is_right


def make(files: Files, slots: int, **options: Any) -> ExpertCache:
    """Make a cache over stamped files; `host_memory` is in bytes."""
    host_memory, threads = options.pop("host_memory", 0), options.pop("threads", 1)
    store = RecordStore(files.locations(), options.pop("reader", None) or DiskReader("buffered"))
    kept = host_memory // LAYOUT.stride
    mover = CpuMover(store, Transfers(threads), nbytes=LAYOUT.stride, kept=kept)
    layouts = [[LAYOUT] * files.experts] * files.layers
    return ExpertCache(mover, layouts, slots_per_layer=slots, **options)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, layers=2, experts=6)


@pytest.fixture
def make_cache(files: Files) -> Callable[..., ExpertCache]:
    return partial(make, files)


def take(
    cache: ExpertCache, layer: int, needed: Iterable[int], number: int | None = None
) -> list[int]:
    """Acquire experts, or the first few; check each one's weights and return their order."""
    yielded = []
    stream = cache.acquire(layer, needed)
    for expert, tensors in stream:
        assert is_right(layer, expert, tensors), (layer, expert)
        assert len(cache.residents(layer)) <= cache.slots_per_layer
        yielded.append(expert)
        if len(yielded) == number:
            stream.close()
    return yielded


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, list[int]]]]:
    """Draw experts, slots, and (layer, demand) of any size, repetitions included."""
    experts = draw(st.integers(1, 8))
    slots = draw(st.integers(1, experts))
    demand = st.lists(st.integers(0, experts - 1), max_size=experts + 2)
    return experts, slots, draw(st.lists(st.tuples(st.integers(0, 1), demand), max_size=15))


@given(runs())
def test_a_run_equals_that_of_a_dictionary(run):
    experts, slots, demands = run
    oracles = [LRUOracle(experts, slots) for _ in range(2)]
    with TemporaryDirectory() as folder:
        cache = make(Files(Path(folder), 2, experts), slots)
        for layer, needed in demands:
            expected = oracles[layer].demand(needed)
            for expert in expected:
                if expert not in oracles[layer].residents:
                    oracles[layer].load(expert, needed)
            assert take(cache, layer, needed) == expected
            assert cache.residents(layer) == set(oracles[layer].residents)
        assert cache.stats() == CacheStats(
            tuple(oracle.hits for oracle in oracles),
            tuple(oracle.misses for oracle in oracles),
            sum(oracle.misses for oracle in oracles) * LAYOUT.stride,
        )
        cache.close()


TROUBLES = st.one_of(
    st.tuples(st.just("demand"), st.lists(st.integers(0, 5), min_size=1), st.just(None)),
    st.tuples(st.just("demand"), st.lists(st.integers(0, 5), min_size=1), st.integers(1, 4)),
    st.tuples(st.just("truncate"), st.integers(0, 5), st.just(None)),
    st.tuples(st.just("repair"), st.just(0), st.just(None)),
)


@given(slots=st.integers(1, 6), steps=st.lists(TROUBLES, max_size=25))
def test_no_failed_read_or_early_end_puts_a_wrong_expert_in_a_slot(slots, steps):
    with TemporaryDirectory() as folder:
        files = Files(Path(folder), 1, 6)
        cache = make(files, slots)
        for action, argument, number in steps:
            if action == "demand":
                with suppress(CheckpointError):
                    take(cache, 0, argument, number)
            elif action == "truncate":
                files.truncate(0, argument)
            else:
                files.repair(0)
        files.repair(0)
        assert sorted(take(cache, 0, range(6))) == [*range(6)]
        cache.close()


@pytest.mark.parametrize("slots", [1, 3, 6])
def test_the_experts_with_the_highest_numbers_are_resident_at_the_start(make_cache, slots):
    assert make_cache(slots).residents(0) == set(range(6 - slots, 6))


def test_at_the_start_the_lowest_resident_is_the_least_recently_used(make_cache):
    cache = make_cache(slots=3)
    take(cache, 0, [0])
    assert cache.residents(0) == {0, 4, 5}


def test_loading_the_first_residents_counts_no_miss_and_no_byte(make_cache):
    assert make_cache(slots=3).stats() == CacheStats((0, 0), (0, 0), 0)


def test_an_expert_that_many_tokens_chose_is_counted_once(make_cache):
    cache = make_cache(slots=3)
    take(cache, 1, [5, 0, 5, 5, 0])
    assert cache.stats() == CacheStats((0, 1), (0, 1), LAYOUT.stride)


def test_hits_come_before_misses(make_cache):
    assert take(make_cache(slots=2), 0, [0, 5, 1, 4]) == [4, 5, 0, 1]


def test_all_experts_pass_through_one_slot(make_cache):
    assert sorted(take(make_cache(slots=1), 0, range(6))) == [*range(6)]


def test_a_demand_that_ends_early_counts_all_of_its_experts(make_cache):
    cache = make_cache(slots=2)
    take(cache, 0, [0, 1, 4], number=1)
    assert (cache.stats().hits, cache.stats().misses, cache.stats().bytes_moved) == (1, 2, 0)


def test_a_demand_that_ends_early_leaves_the_residents_as_they_were(make_cache):
    cache = make_cache(slots=2)
    take(cache, 0, [0, 1, 4], number=1)
    assert cache.residents(0) == {4, 5}


def test_an_unread_expert_that_was_overwritten_is_never_yielded(files):
    cache = make(files, slots=2)
    files.overwrite(0, expert=1)
    with pytest.raises(CheckpointError, match="expert 1 of layer 0 is damaged"):
        take(cache, 0, [1])
    assert 1 not in cache.residents(0)


def test_after_a_failed_read_the_others_are_still_right(files):
    cache = make(files, slots=2)
    files.overwrite(0, expert=1)
    with pytest.raises(CheckpointError):
        take(cache, 0, [0, 1])
    assert sorted(take(cache, 0, [0, 2, 3, 4, 5])) == [0, 2, 3, 4, 5]


def test_a_second_demand_in_the_middle_of_the_first_leaves_both_right(make_cache):
    cache = make_cache(slots=2)
    first = cache.acquire(0, [3, 4, 5])
    next(first)
    take(cache, 0, [0, 1, 2, 3])
    for expert, tensors in first:
        assert is_right(0, expert, tensors)
    assert len(cache.residents(0)) == 2


def test_a_damaged_record_of_a_first_resident_is_an_error_at_once(files):
    files.overwrite(1, expert=5)
    with pytest.raises(CheckpointError, match="expert 5 of layer 1"):
        make(files, slots=1)


def test_a_users_own_policy_chooses_the_victim(make_cache):
    class MRU(Policy):
        def scores(self, seen):
            return -seen.last_used

    cache = make_cache(slots=3, policy=MRU())
    take(cache, 0, [0])
    assert cache.residents(0) == {0, 3, 4}


def test_more_slots_than_experts_are_an_error_with_the_valid_range(make_cache):
    with pytest.raises(ConfigError, match=r"give 0 .* to 6"):
        make_cache(slots=7)


def test_without_slots_every_expert_is_fetched_each_time_and_none_stays(make_cache):
    cache = make_cache(slots=0)
    for _ in range(2):
        assert take(cache, 0, [1, 4]) == [1, 4]
        assert not cache.residents(0)
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (0, 4)
    assert stats.bytes_moved == 4 * LAYOUT.stride


def test_host_memory_is_not_spent_on_experts_that_start_on_the_device(files):
    cache = make(files, slots=1, host_memory=LAYOUT.stride)  # one record
    take(cache, 0, [0])
    take(cache, 0, [1])
    files.truncate(0, records=0)
    assert take(cache, 0, [0]) == [0]


def test_records_in_host_memory_outlive_their_file(files):
    cache = make(files, slots=1, host_memory=2**20)
    take(cache, 0, range(6))
    take(cache, 0, [5])  # it started on the device, so this is its first miss
    files.truncate(0, records=0)
    assert sorted(take(cache, 0, range(6))) == [*range(6)]


def test_a_closed_cache_raises_an_error(make_cache):
    cache = make_cache(slots=2)
    cache.close()
    with pytest.raises(MixoffError, match="closed: build the model again"):
        take(cache, 0, [0])


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copying_a_cache_is_an_error_with_what_to_do(make_cache, duplicate):
    with pytest.raises(MixoffError, match="build the model again"):
        duplicate(make_cache(slots=2))


def test_a_model_without_a_cache_is_an_error_with_what_to_do():
    with pytest.raises(MixoffError, match=r"Linear has no expert cache: .*mixoff\.build_model"):
        cache_of(nn.Linear(1, 1))


def test_the_difference_of_two_counts_is_what_happened_between():
    earlier, later = CacheStats((1, 2), (3, 4), 5), CacheStats((6, 6), (6, 6), 60)
    assert later - earlier == CacheStats((5, 4), (3, 2), 55)


def test_rates_are_hits_over_demanded_experts():
    stats = CacheStats((3, 0), (1, 0), 7)
    assert (stats.hits, stats.misses, stats.hit_rate) == (3, 1, 0.75)
    assert stats.hit_rate_per_layer[0] == 0.75
    assert math.isnan(stats.hit_rate_per_layer[1])


def test_without_a_demand_the_rate_is_nan():
    assert math.isnan(CacheStats((0,), (0,), 0).hit_rate)


@pytest.mark.parametrize(
    ("stats", "shown"),
    [
        (
            CacheStats((3, 0), (1, 0), 3 << 20, wait_ns=1_500_000),
            "CacheStats(3 hits, 1 misses, hit rate 75.0%, 3.00 MiB moved, waited 0.002 s)",
        ),
        (
            CacheStats((0,), (0,)),
            "CacheStats(0 hits, 0 misses, hit rate unknown, 0 B moved, waited 0.000 s)",
        ),
        (
            CacheStats((1,), (2,), 0, 0, 5, 1, 3, 0, 2, 10**9),
            "CacheStats(1 hits, 2 misses, hit rate 33.3%, 0 B moved, waited 0.000 s, "
            "2 computed in 1.000 s, prefetched 5 used, 1 late, 3 wasted)",
        ),
    ],
)
def test_printed_counts_are_their_sums_and_the_hit_rate(stats, shown):
    assert str(stats) == repr(stats) == shown


def test_a_printed_cache_shows_slots_policy_device_and_hit_rate(make_cache):
    cache = make_cache(slots=2, policy="lfu")
    shown = "ExpertCache(2 of 6 experts in each of 2 layers, lfu, cpu, "
    assert repr(cache) == f"{shown}no demand yet)"
    take(cache, 0, [0, 3, 4, 5])
    assert repr(cache) == f"{shown}hit rate 50.0%)"
    cache.close()
    assert repr(cache) == f"{shown}hit rate 50.0%, closed)"


def settle_guesses(cache: ExpertCache) -> None:
    """Do all copies of guesses to their end, where no thread does them."""
    while cache._mover.transfers.step():
        pass


def buffers(cache: ExpertCache) -> int:
    """Return how many buffers exist, in use or not, once those that are returning have."""
    while cache._state.pool.wait():
        pass
    return len(cache._state.pool._made)


@pytest.mark.parametrize("threads", [0, 1])
def test_a_resize_keeps_the_experts_right_and_the_counts_going(make_cache, threads):
    cache = make_cache(slots=3, threads=threads)
    take(cache, 0, [0, 1])
    before = cache.stats()
    for slots in (5, 1, 6, 2, 3):
        cache.resize(slots)
        assert cache.slots_per_layer == slots
        for layer in range(2):
            assert len(cache.residents(layer)) <= slots
            assert sorted(take(cache, layer, range(6))) == [*range(6)]
            assert len(cache.residents(layer)) == slots
    after = cache.stats() - before
    assert after.hits + after.misses == 5 * 2 * 6


def test_a_smaller_cache_keeps_those_that_would_be_evicted_last(make_cache):
    cache = make_cache(slots=4)
    take(cache, 0, [2])
    cache.resize(2)
    assert cache.residents(0) == {2, 5}


def test_a_resize_frees_the_memory_of_the_slots_that_it_removes(make_cache):
    cache = make_cache(slots=6, staging=2)
    assert buffers(cache) == 12
    cache.resize(1)
    assert buffers(cache) <= 2 + 2
    cache.resize(4)
    for layer in range(2):
        take(cache, layer, range(6))
    assert buffers(cache) <= 8 + 2


def test_a_resize_in_the_middle_of_a_demand_leaves_the_demand_right(make_cache):
    for slots in range(1, 7):
        cache = make_cache(slots=3)
        stream = cache.acquire(0, range(6))
        next(stream)
        cache.resize(slots)
        for expert, tensors in stream:
            assert is_right(0, expert, tensors)
        assert len(cache.residents(0)) <= slots
        assert sorted(take(cache, 0, range(6))) == [*range(6)]


@pytest.mark.parametrize("slots", [-1, 7])
def test_a_resize_to_more_slots_than_experts_changes_nothing(make_cache, slots):
    cache = make_cache(slots=3)
    with pytest.raises(ConfigError, match=r"give 0 .* to 6"):
        cache.resize(slots)
    assert cache.slots_per_layer == 3
    assert take(cache, 0, [3, 4, 5]) == [3, 4, 5]


def test_an_expert_that_two_open_demands_evict_frees_both_its_buffers(make_cache):
    cache = make_cache(slots=1, policy="static", host_memory=2 * LAYOUT.stride)
    outer = cache.acquire(0, [0, 1])
    assert next(outer)[0] == 0
    assert take(cache, 0, [0]) == [0]
    outer.close()
    assert buffers(cache) == 2 + len(cache._mover._kept) + len(cache._state.pool._free)


def test_a_demand_that_is_not_read_keeps_no_buffer_from_one_that_is(make_cache):
    cache = make_cache(slots=1, staging=2)
    outer = cache.acquire(0, range(6))
    next(outer)
    unread = cache.acquire(1, range(6))
    for expert, tensors in outer:
        assert is_right(0, expert, tensors)
    assert sorted(expert for expert, _ in unread) == [*range(6)]


def test_a_guess_that_is_complete_at_its_demand_is_used(make_cache):
    cache = make_cache(slots=2, threads=0)
    cache.prefetch(0, [1])
    settle_guesses(cache)
    assert take(cache, 0, [1]) == [1]
    stats = cache.stats()
    assert (stats.prefetch_used, stats.prefetch_late, stats.prefetch_wasted) == (1, 0, 0)
    assert (stats.misses, stats.bytes_moved, stats.bytes_wasted) == (1, LAYOUT.stride, 0)


def test_a_guess_that_is_in_flight_at_its_demand_is_late(make_cache):
    cache = make_cache(slots=2, threads=0)
    cache.prefetch(0, [1])
    assert take(cache, 0, [1]) == [1]
    stats = cache.stats()
    assert (stats.prefetch_used, stats.prefetch_late, stats.prefetch_wasted) == (0, 1, 0)
    assert stats.bytes_moved == LAYOUT.stride


def test_a_guess_in_flight_that_its_layer_did_not_use_is_dropped_unread(make_cache):
    cache = make_cache(slots=2, threads=0)
    cache.prefetch(0, [1])
    take(cache, 0, [0])
    assert (cache.stats().prefetch_wasted, cache.stats().bytes_wasted) == (1, 0)


def test_an_unused_guess_is_wasted_bytes_once_its_buffer_is_needed(make_cache):
    cache = make_cache(slots=2, threads=0, staging=2)
    cache.prefetch(0, [1, 2])
    settle_guesses(cache)
    take(cache, 0, [0, 3])
    take(cache, 1, [0, 1, 2, 3])
    stats = cache.stats()
    assert stats.prefetch_wasted >= 1
    assert stats.bytes_wasted == stats.prefetch_wasted * LAYOUT.stride


def test_a_guess_that_is_still_in_its_buffer_serves_a_later_demand(make_cache):
    cache = make_cache(slots=2, threads=0)
    cache.prefetch(0, [1])
    settle_guesses(cache)
    take(cache, 0, [5])
    take(cache, 0, [1])
    assert cache.stats().prefetch_used == 1


@pytest.mark.parametrize("threads", [0, 1])
def test_no_guess_costs_a_resident_its_slot_or_changes_hits_and_misses(files, threads):
    guessing, plain = make(files, 2, threads=threads), make(files, 2, threads=threads)
    chance = random.Random(0)
    for step in range(200):
        layer, needed = step % 2, chance.sample(range(6), chance.choice([1, 2, 2, 4]))
        guessing.prefetch(layer, chance.sample(range(6), 3), layers_ahead=chance.choice([1, 2]))
        assert guessing.residents(layer) == plain.residents(layer)
        take(guessing, layer, needed)
        take(plain, layer, needed)
        assert guessing.residents(layer) == plain.residents(layer)
    with_guesses, without = guessing.stats(), plain.stats()
    assert with_guesses.hits_per_layer == without.hits_per_layer
    assert with_guesses.misses_per_layer == without.misses_per_layer
    assert with_guesses.prefetch_used + with_guesses.prefetch_late > 0


def test_guessing_a_resident_moves_nothing(make_cache):
    cache = make_cache(slots=3, threads=0)
    cache.prefetch(0, [3, 4, 5])
    assert not cache._mover.transfers.step()


def test_guessing_an_expert_twice_copies_it_once(make_cache):
    cache = make_cache(slots=2, threads=0)
    cache.prefetch(0, [1])
    cache.prefetch(0, [1])
    settle_guesses(cache)
    take(cache, 0, [1])
    assert cache.stats().bytes_moved + cache.stats().bytes_wasted == LAYOUT.stride


def test_guessing_an_expert_that_is_in_flight_copies_it_once(make_cache):
    cache = make_cache(slots=2, threads=0)
    stream = cache.acquire(0, [0, 1])
    cache.prefetch(0, [0, 1])
    assert sorted(expert for expert, _ in stream) == [0, 1]
    stats = cache.stats()
    assert stats.prefetch_wasted + stats.prefetch_used + stats.prefetch_late == 0


def test_a_guess_of_a_damaged_record_is_no_error_until_it_is_demanded(files):
    cache = make(files, slots=2, threads=0)
    files.overwrite(0, expert=1)
    cache.prefetch(0, [1])
    settle_guesses(cache)
    assert take(cache, 0, [0]) == [0]
    with pytest.raises(CheckpointError, match="expert 1 of layer 0 is damaged"):
        take(cache, 0, [1])
    files.repair(0)
    assert take(cache, 0, [1]) == [1]


def test_recordings_may_be_nested(make_cache):
    cache = make_cache(slots=2)
    with cache.record() as outer:
        take(cache, 0, [0])
        with cache.record() as inner:
            take(cache, 1, [1])
        take(cache, 0, [2])
    take(cache, 0, [3])
    assert [[*outer.demands().layer], [*inner.demands().layer]] == [[0, 1, 0], [1]]


def test_a_recording_that_an_error_ends_holds_what_was_until_then(make_cache):
    cache = make_cache(slots=2)
    with suppress(CheckpointError), cache.record() as trace:
        take(cache, 0, [0])
        raise CheckpointError("enough")
    take(cache, 0, [1])
    trace.check()
    assert trace.demands().expert.tolist() == [0]


def test_a_recording_that_begins_inside_a_demand_starts_after_it(make_cache):
    cache = make_cache(slots=2)
    stream = cache.acquire(0, [0, 1, 2])
    next(stream)
    with cache.record() as trace:
        assert len([*stream]) == 2
        take(cache, 0, [2, 3])
    assert trace.demands().expert.tolist() == [2, 3]
    assert replay(trace).hit.tolist() == trace.demands().hit.tolist()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("threads", [0, 1])
def test_a_demand_whose_cache_is_closed_yields_nothing_more(make_cache, threads, number):
    cache = make_cache(slots=2, threads=threads)
    stream = cache.acquire(0, [0, 1, 2, 5])
    for _ in range(number):
        next(stream)
    cache.close()
    with pytest.raises(MixoffError, match="closed: build the model again"):
        next(stream)
    cache.close()


def test_resizing_a_closed_cache_is_an_error(make_cache):
    cache = make_cache(slots=2)
    cache.close()
    with pytest.raises(MixoffError, match="closed: build the model again"):
        cache.resize(1)


@pytest.mark.parametrize("policy", ["belady", "belady-bypass", Belady(), BeladyBypass()])
def test_a_policy_that_knows_the_future_is_refused_live(make_cache, policy):
    with pytest.raises(ConfigError, match="belady"):
        make_cache(slots=2, policy=policy)
    with pytest.raises(ConfigError, match="belady"):
        make_cache(slots=2, policy=policy)


@pytest.mark.parametrize("policy", ["belady", "belady-bypass"])
def test_settings_refuse_a_policy_that_knows_the_future(policy):
    with pytest.raises(ConfigError, match=r"give one of lru, lfu, .*, or a Policy"):
        OffloadConfig(policy=policy)


def test_a_cache_that_is_collected_inside_its_own_read_closes_all_the_same(files):
    gc.collect()  # or garbage of other tests would close its files during this one
    before, reading, go = open_files(), threading.Event(), threading.Event()
    ended = threading.Event()

    def collecting(descriptor: int, into: Any, offset: int) -> int:
        if threading.current_thread().name == "mixoff-transfers" and armed:
            reading.set()
            go.wait(5)
            gc.collect()
            ended.set()
        return os.preadv(descriptor, into, offset)

    armed: list[bool] = []
    cache = make(files, 2, reader=DiskReader("buffered", pread=collecting))
    armed.append(True)
    cache.itself = cache  # so that only garbage collection finds it
    cache.prefetch(0, [0])
    assert reading.wait(5)
    gc.disable()
    try:
        del cache
        go.set()
        assert ended.wait(5), "the thread waits for its own read"
    finally:
        gc.enable()
    for thread in threading.enumerate():
        if thread.name == "mixoff-transfers" and thread.is_alive():
            thread.join(0.5)
    assert open_files() == before


def open_files() -> list[str]:
    links = Path("/proc/self/fd").iterdir()
    return sorted(str(link.readlink()) for link in links if link.exists())


@pytest.mark.parametrize("io", ["direct", "buffered"])
def test_a_thread_is_reserved_while_records_are_read_through_the_page_cache(files, io):
    reader = DiskReader(io)
    cache = make(files, slots=2, threads=0, reader=reader)
    assert cache.reserved_threads() == 0
    cache.prefetch(0, [0])
    assert cache.reserved_threads() == (reader.io != "direct")
    settle_guesses(cache)
    assert cache.reserved_threads() == 0
