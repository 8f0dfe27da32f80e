"""Ten thousand tokens over a disk with slow, short and failing reads, cut at random."""

import contextlib
import errno
import faulthandler
import gc
import os
import random
import resource
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixoff.cache.cache import ExpertCache
from mixoff.errors import CheckpointError
from mixoff.policies.registry import LIVE_POLICIES
from mixoff.tiers.cpu import CpuMover
from mixoff.tiers.disk import DiskReader
from mixoff.tiers.queue import Transfers
from mixoff.tiers.store import RecordStore
from support.invariants import check_invariants
from support.stamped import LAYOUT, Files, is_right

LAYERS, EXPERTS, TOKENS, SEEDS = 3, 6, 1000, 10


class BadDisk:
    """Reads that are slow, short, refused or empty, at random, from any thread."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.lock = threading.Lock()
        self.is_bad = True
        self.counts = {"slow": 0, "short": 0, "error": 0, "empty": 0}

    def __call__(self, descriptor: int, buffers: list[memoryview], offset: int) -> int:
        (into,) = buffers
        trouble = self.trouble()
        if trouble == "slow":
            time.sleep(0.0005)
        elif trouble == "short":
            into = into[: max(1, len(into) // 3)]
        elif trouble == "error":
            into[: len(into) // 2] = bytes(len(into) // 2)  # as a read does that fails half-way
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        elif trouble == "empty":
            return 0
        return os.preadv(descriptor, [into], offset)

    def trouble(self) -> str | None:
        with self.lock:
            if not self.is_bad:
                return None
            kinds, weights = [*self.counts, None], [2, 6, 3, 1, 88]
            (trouble,) = self.chance.choices(kinds, weights)
            if trouble is not None:
                self.counts[trouble] += 1
            return trouble


class Stress:
    """A cache under random demands, and counts of what it yielded."""

    def __init__(self, files: Files, seed: int, threads: int = 1) -> None:
        self.chance = random.Random(seed)
        self.disk = BadDisk(seed)
        self.disk.is_bad = False
        nbytes = LAYOUT.stride
        reader = DiskReader("buffered", pread=self.disk)
        kept = self.chance.choice([0, 0, 2])
        self.cache = ExpertCache(
            CpuMover(
                RecordStore(files.locations(), reader), Transfers(threads), nbytes=nbytes, kept=kept
            ),
            [[LAYOUT] * EXPERTS] * LAYERS,
            slots_per_layer=self.chance.randint(1, EXPERTS),
            policy=self.chance.choice(LIVE_POLICIES),
            staging=self.chance.randint(2, 4),
        )
        self.disk.is_bad = True
        self.right = self.failed = self.stopped = self.nested = 0

    def token(self) -> None:
        for layer in range(LAYERS):
            try:
                self.demand(layer)
            except CheckpointError:
                self.failed += 1
            check_invariants(self.cache)
            if self.chance.random() < 0.005:
                self.cache.resize(self.chance.randint(1, EXPERTS))

    def demand(self, layer: int, *, nested: bool = False) -> None:
        chance = self.chance
        needed = chance.sample(range(EXPERTS), chance.choice([1, 2, 2, 2, 4, EXPERTS]))
        stream = self.cache.acquire(layer, needed)
        if chance.random() < 0.5:
            guessed = chance.sample(range(EXPERTS), chance.randrange(4))
            ahead = chance.choice([1, 1, 2])
            self.cache.prefetch((layer + ahead) % LAYERS, guessed, layers_ahead=ahead)
        if chance.random() < 0.02:
            return  # it is never read
        self.read(layer, needed, stream, nested=nested)

    def read(
        self,
        layer: int,
        needed: list[int],
        stream: Iterator[tuple[int, object]],
        *,
        nested: bool,
    ) -> None:
        yielded = []
        for expert, tensors in stream:
            assert is_right(layer, expert, tensors), f"stale bytes: expert {expert} of {layer}"
            self.right += 1
            yielded.append(expert)
            if self.right % 4 == 0:  # it takes a while
                check_invariants(self.cache)
            fate = self.chance.random()
            if fate < 0.03:
                self.stopped += 1
                return
            if fate < 0.06:
                self.stopped += 1
                stream.close()
            elif fate < 0.08 and not nested:
                self.nested += 1
                self.demand(self.chance.randrange(LAYERS), nested=True)
        assert len({*yielded}) == len(yielded)
        assert {*yielded} <= {*needed}

    def check_counts(self) -> None:
        """Check that every buffer is in a slot, kept, guessed, or free."""
        cache, pool = self.cache, self.cache._state.pool
        while pool.wait():
            pass
        assert len(pool._made) <= pool.limit
        in_slots = sum(len(cache.residents(layer)) for layer in range(LAYERS))
        resting = len(cache._state.staging._guesses) + len(cache._mover._kept)
        assert len(pool._made) == in_slots + resting + len(pool._free)
        for layer in range(LAYERS):
            assert len(cache.residents(layer)) <= cache.slots_per_layer


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """Print every thread's stack, and end the run, if one waits for ever."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def rss_nbytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_no_fault_yields_wrong_bytes_or_stops_the_cache(tmp_path, threads):
    files, totals = Files(tmp_path, LAYERS, EXPERTS), []
    before = threading.active_count(), open_files()
    for seed in range({0: 1, 1: SEEDS - 2, 2: 1}[threads]):
        stress = Stress(files, seed, threads)
        for _ in range(TOKENS):
            stress.token()
        stress.cache.acquire(0, ()).close()  # ends a demand that is still open
        stress.check_counts()
        stress.disk.is_bad = False
        for layer in range(LAYERS):
            needed = [*range(EXPERTS)]
            stress.read(layer, needed, stress.cache.acquire(layer, needed), nested=True)
        totals.append((stress.right, stress.failed, stress.stopped, stress.nested))
        assert all(stress.disk.counts.values()), "every trouble occurred"
        stress.cache.close()
        stress.cache.close()
        assert (threading.active_count(), open_files()) == before
    assert all(min(total) > 20 for total in totals), "all of them occurred"


def test_memory_is_constant_over_many_tokens(tmp_path):
    stress = Stress(Files(tmp_path, LAYERS, EXPERTS), seed=3)
    for _ in range(150):
        stress.token()
    gc.collect()
    tracemalloc.start()
    for _ in range(20):
        stress.token()
    first, rss = tracemalloc.get_traced_memory()[0], rss_nbytes()
    for _ in range(300):
        stress.token()
    gc.collect()
    last = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert last - first < 100_000
    assert rss_nbytes() - rss < 20 << 20
    stress.cache.close()


def test_a_demand_after_a_failed_one_reads_again_and_is_right(tmp_path):
    stress = Stress(Files(tmp_path, LAYERS, EXPERTS), seed=0, threads=0)
    stress.disk.chance = random.Random(1)
    stress.disk.trouble = lambda: "error"  # type: ignore[method-assign]
    stress.cache.resize(1)
    outside = min({*range(EXPERTS)} - stress.cache.residents(0))
    with pytest.raises(CheckpointError, match="Input/output error"):
        next(stress.cache.acquire(0, [outside]))
    stress.disk.trouble = lambda: None  # type: ignore[method-assign]
    with contextlib.closing(stress.cache.acquire(0, [outside])) as stream:
        ((expert, tensors),) = [*stream]
        assert expert == outside
        assert is_right(0, expert, tensors)
    stress.cache.close()
