"""Every expert that the cache hands out is the one that was asked for, and is counted right."""

import copy
import math
import pickle
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import LRUOracle
from torch import nn

from mixoff.cache import CacheStats, Expert, ExpertCache, cache_of
from mixoff.config import OffloadConfig
from mixoff.errors import CheckpointError, ConfigError, MixoffError
from mixoff.policies import Policy
from mixoff.quantization import Unquantized
from mixoff.records import RecordLayout
from mixoff.store import RecordLocation, RecordStore

LAYOUT = RecordLayout(Unquantized("float32"), (("weight", (3, 5)),))
CPU = torch.device("cpu")
DTYPES = ("float32", "float16", "bfloat16")


def stamp(layer: int, expert: int) -> float:
    """Return the number that all weights of an expert have, and no other's."""
    return 100.0 * (layer + 1) + expert


def record(layer: int, expert: int) -> bytes:
    raw = torch.zeros(LAYOUT.stride, dtype=torch.uint8)
    for tensor in LAYOUT.tensors(raw).values():
        tensor.parts["weight"].fill_(stamp(layer, expert))
    return raw.numpy().tobytes()


def is_right(layer: int, expert: int, tensors: Expert) -> bool:
    return bool((tensors["weight"].parts["weight"] == stamp(layer, expert)).all())


class Files:
    """A file of stamped records for each layer, which can be damaged and repaired."""

    def __init__(self, folder: Path, layers: int, experts: int) -> None:
        self.folder, self.layers, self.experts = folder, layers, experts
        for layer in range(layers):
            self.repair(layer)

    def path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer}"

    def repair(self, layer: int) -> None:
        content = b"".join(record(layer, expert) for expert in range(self.experts))
        with self.path(layer).open("r+b" if self.path(layer).exists() else "wb") as file:
            file.write(content)

    def truncate(self, layer: int, records: int) -> None:
        """Cut a file off inside the record after so many, unless it is shorter already."""
        nbytes = records * LAYOUT.stride + LAYOUT.nbytes // 2
        with self.path(layer).open("r+b") as file:
            file.truncate(min(nbytes, self.path(layer).stat().st_size))

    def overwrite(self, layer: int, expert: int) -> None:
        with self.path(layer).open("r+b") as file:
            file.seek(expert * LAYOUT.stride)
            file.write(record(9, expert))

    def locations(self) -> list[list[RecordLocation]]:
        return [
            [
                RecordLocation(
                    self.path(layer),
                    expert * LAYOUT.stride,
                    LAYOUT.stride,
                    zlib.crc32(record(layer, expert)),
                )
                for expert in range(self.experts)
            ]
            for layer in range(self.layers)
        ]

    def cache(self, slots: int, policy: str | Policy = "lru", host_memory: int = 0) -> ExpertCache:
        return ExpertCache(
            RecordStore(self.locations(), host_memory),
            [[LAYOUT] * self.experts] * self.layers,
            num_experts=self.experts,
            offload=OffloadConfig(offload_per_layer=self.experts - slots, policy=policy),
            device=CPU,
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, layers=2, experts=6)


@pytest.fixture
def make_cache(files: Files) -> Callable[..., ExpertCache]:
    return files.cache


def take(
    cache: ExpertCache, layer: int, needed: Iterable[int], number: int | None = None
) -> list[int]:
    """Acquire experts, or the first few; check each one's weights and return their order."""
    came = []
    acquired = cache.acquire(layer, needed)
    for expert, tensors in acquired:
        assert is_right(layer, expert, tensors), (layer, expert)
        assert len(cache.residents(layer)) <= cache.slots_per_layer
        came.append(expert)
        if len(came) == number:
            acquired.close()
    return came


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, list[int]]]]:
    """Draw experts, slots, and (layer, demand) of any size, repetitions included."""
    experts = draw(st.integers(1, 8))
    slots = draw(st.integers(1, experts))
    demand = st.lists(st.integers(0, experts - 1), max_size=experts + 2)
    return experts, slots, draw(st.lists(st.tuples(st.integers(0, 1), demand), max_size=15))


@given(runs())
def test_a_run_is_that_of_a_dictionary(run):
    experts, slots, demands = run
    oracles = [LRUOracle(experts, slots) for _ in range(2)]
    with TemporaryDirectory() as folder:
        cache = Files(Path(folder), 2, experts).cache(slots)
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
        cache = files.cache(slots)
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
def test_the_experts_with_the_highest_numbers_start_inside(make_cache, slots):
    assert make_cache(slots).residents(0) == set(range(6 - slots, 6))


def test_at_the_start_the_lowest_resident_is_the_least_recently_used(make_cache):
    cache = make_cache(slots=3)
    take(cache, 0, [0])
    assert cache.residents(0) == {0, 4, 5}


def test_what_starts_inside_is_no_miss_and_no_byte_moved(make_cache):
    assert make_cache(slots=3).stats() == CacheStats((0, 0), (0, 0), 0)


def test_an_expert_that_many_tokens_chose_is_counted_once(make_cache):
    cache = make_cache(slots=3)
    take(cache, 1, [5, 0, 5, 5, 0])
    assert cache.stats() == CacheStats((0, 1), (0, 1), LAYOUT.stride)


def test_hits_come_before_misses(make_cache):
    assert take(make_cache(slots=2), 0, [0, 5, 1, 4]) == [4, 5, 0, 1]


def test_all_experts_pass_through_one_slot(make_cache):
    assert sorted(take(make_cache(slots=1), 0, range(6))) == [*range(6)]


def test_a_demand_that_ends_early_counts_all_that_was_asked_for(make_cache):
    cache = make_cache(slots=2)
    take(cache, 0, [0, 1, 4], number=1)
    assert (cache.stats().hits, cache.stats().misses, cache.stats().bytes_moved) == (1, 2, 0)


def test_a_demand_that_ends_early_leaves_the_residents_as_they_were(make_cache):
    cache = make_cache(slots=2)
    take(cache, 0, [0, 1, 4], number=1)
    assert cache.residents(0) == {4, 5}


def test_an_unread_expert_that_was_overwritten_is_never_handed_out(files):
    cache = files.cache(slots=2)
    files.overwrite(0, expert=1)
    with pytest.raises(CheckpointError, match="expert 1 of layer 0 is damaged"):
        take(cache, 0, [1])
    assert 1 not in cache.residents(0)


def test_after_a_failed_read_the_others_are_still_right(files):
    cache = files.cache(slots=2)
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


def test_a_damaged_record_that_should_start_inside_is_an_error_at_once(files):
    files.overwrite(1, expert=5)
    with pytest.raises(CheckpointError, match="expert 5 of layer 1"):
        files.cache(slots=1)


def test_a_policy_of_ones_own_chooses_the_victim(make_cache):
    class MRU(Policy):
        def scores(self, seen):
            return -seen.last_used

    cache = make_cache(slots=3, policy=MRU())
    take(cache, 0, [0])
    assert cache.residents(0) == {0, 3, 4}


def test_no_slot_is_an_error_with_what_would_do(make_cache):
    with pytest.raises(ConfigError, match="give 0 to 5"):
        make_cache(slots=0)


def test_host_memory_is_not_spent_on_experts_that_start_on_the_device(files):
    cache = files.cache(slots=1, host_memory=LAYOUT.stride)  # room for one record
    take(cache, 0, [0])
    take(cache, 0, [1])
    files.truncate(0, records=0)
    assert take(cache, 0, [0]) == [0]


def test_records_in_host_memory_outlive_their_file(files):
    cache = files.cache(slots=1, host_memory=2**20)
    take(cache, 0, range(6))
    take(cache, 0, [5])  # it started on the device, so this is its first miss
    files.truncate(0, records=0)
    assert sorted(take(cache, 0, range(6))) == [*range(6)]


def test_a_closed_cache_says_so(make_cache):
    cache = make_cache(slots=2)
    cache.close()
    with pytest.raises(MixoffError, match="closed: build the model again"):
        take(cache, 0, [0])


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_cache_cannot_be_copied_and_says_what_to_do(make_cache, duplicate):
    with pytest.raises(MixoffError, match="build the model again"):
        duplicate(make_cache(slots=2))


def test_a_model_without_a_cache_is_told_how_to_get_one():
    with pytest.raises(MixoffError, match=r"Linear has no expert cache: .*mixoff\.build_model"):
        cache_of(nn.Linear(1, 1))


def test_the_difference_of_two_counts_is_what_happened_between():
    earlier, later = CacheStats((1, 2), (3, 4), 5), CacheStats((6, 6), (6, 6), 60)
    assert later - earlier == CacheStats((5, 4), (3, 2), 55)


def test_rates_are_hits_over_all_that_was_asked_for():
    stats = CacheStats((3, 0), (1, 0), 7)
    assert (stats.hits, stats.misses, stats.hit_rate) == (3, 1, 0.75)
    assert stats.hit_rate_per_layer[0] == 0.75
    assert math.isnan(stats.hit_rate_per_layer[1])


def test_nothing_asked_for_is_no_rate():
    assert math.isnan(CacheStats((0,), (0,), 0).hit_rate)


def test_each_expert_has_the_tensors_of_its_own_layout(tmp_path: Path):
    layouts = [RecordLayout(Unquantized(dtype), (("weight", (3, 5)),)) for dtype in DTYPES]
    for expert, dtype in enumerate(DTYPES):
        weight = torch.full((3, 5), expert + 1, dtype=getattr(torch, dtype))
        (tmp_path / dtype).write_bytes(weight.view(torch.uint8).numpy().tobytes())
    places = [
        RecordLocation(tmp_path / dtype, 0, layout.nbytes, None)
        for dtype, layout in zip(DTYPES, layouts, strict=True)
    ]
    offload = OffloadConfig(offload_per_layer=2)
    cache = ExpertCache(
        RecordStore([places]), [layouts], num_experts=3, offload=offload, device=CPU
    )
    for _ in range(2):
        for expert, tensors in cache.acquire(0, range(3)):
            assert (tensors["weight"].dequantize() == expert + 1).all()
