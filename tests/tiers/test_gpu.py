"""No byte is used before its copy has ended, or overwritten before its use has, in any order."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixoff.cache.cache import ExpertCache
from mixoff.config import Miss
from mixoff.tiers.disk import DiskReader
from mixoff.tiers.gpu import GpuMover
from mixoff.tiers.host import PinnedMemory
from mixoff.tiers.queue import Transfers
from mixoff.tiers.store import RecordStore
from support.fake_device import FakeDevice, FakeEvent, FakeStream
from support.invariants import check_invariants, check_loans
from support.stamped import LAYOUT, Files, is_right

LAYERS, EXPERTS = 3, 6
TIERS = {
    "disk": {"host_buffers": 0, "inclusive": False},
    "all in host memory": {"host_buffers": LAYERS * EXPERTS, "inclusive": True},
    "part in host memory": {"host_buffers": 5, "inclusive": True},
    "exclusive, nothing left on disk": {"host_buffers": LAYERS * 4, "inclusive": False},
    "exclusive, the rest on disk": {"host_buffers": 3, "inclusive": False},
}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, LAYERS, EXPERTS)


class Run:
    """Random demands and guesses, whose bytes are checked when the device runs their use."""

    def __init__(
        self,
        files: Files,
        device: FakeDevice,
        tier: str,
        *,
        slots: int = 2,
        threads: int = 0,
        miss: Miss = "fetch",
    ) -> None:
        self.device, self.wrong, self.used = device, [], 0
        self.borrows = True  # False where a test breaks that
        self.pinned = PinnedMemory(device, budget=2**20)
        self.mover = GpuMover(
            RecordStore(files.locations(), DiskReader("buffered")),
            Transfers(threads),
            device,
            nbytes=LAYOUT.stride,
            pinned=self.pinned,
            **TIERS[tier],
        )
        self.cache = ExpertCache(
            self.mover,
            [[LAYOUT] * EXPERTS] * LAYERS,
            slots_per_layer=slots,
            staging=3,
            miss=miss,
        )

    def go(self, steps: int, seed: int, *, interrupted: float = 0.0) -> None:
        chance = random.Random(seed)
        for step in range(steps):
            layer = step % LAYERS
            needed = chance.sample(range(EXPERTS), chance.choice([1, 2, 2, 2, 4, EXPERTS]))
            stream = self.cache.acquire(layer, needed)
            guessed = chance.sample(range(EXPERTS), chance.randrange(3))
            self.cache.prefetch((layer + 1) % LAYERS, guessed)
            for expert, tensors in stream:
                check_invariants(self.cache)
                if self.borrows:
                    check_loans(self.cache, computing=expert in stream.computed)
                check = self.check(layer, expert, tensors)
                if expert in stream.computed:
                    check()
                else:
                    self.device.compute.enqueue(check)
                if chance.random() < interrupted:
                    [*self.cache.acquire(chance.randrange(LAYERS), [chance.randrange(EXPERTS)])]
                    if expert in stream.computed:  # it is valid until the next one is requested
                        for ticket in [*self.mover._write_backs.values()]:
                            ticket.settle()
                        self.device.run_all()
                        check()
                if chance.random() < 0.05:
                    break
        self.device.run_all()

    def check(self, layer: int, expert: int, tensors: object) -> Callable[[], None]:
        def look() -> None:
            self.used += 1
            if not is_right(layer, expert, tensors):
                self.wrong.append((layer, expert))

        return look


@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize("tier", TIERS)
def test_compute_sees_the_right_bytes_however_the_streams_run(files, tier, threads):
    for seed in range(8):
        run = Run(files, FakeDevice(seed), tier, threads=threads)
        run.go(120, seed)
        assert run.used > 200
        assert run.wrong == []
        run.cache.close()


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("miss", ["compute", "auto"])
@pytest.mark.parametrize("tier", [tier for tier in TIERS if tier != "disk"])
def test_the_host_reads_the_right_bytes_of_computed_misses(files, tier, miss, threads):
    computed = 0
    for seed in range(4):
        run = Run(files, FakeDevice(seed), tier, threads=threads, miss=miss)
        run.go(120, seed, interrupted=0.1)
        assert run.wrong == []
        computed += run.cache.stats().computed
        run.cache.close()
    assert computed > 0


def test_a_host_that_waits_for_nothing_before_it_reads_is_caught(files, monkeypatch):
    monkeypatch.setattr(GpuMover, "wait_until_in_host_memory", lambda *_: None)
    wrong = 0
    for seed in range(4):
        run = Run(files, FakeDevice(seed), "exclusive, the rest on disk", miss="compute")
        run.go(120, seed)
        wrong += len(run.wrong)
    assert wrong


def test_a_host_that_borrows_nothing_is_caught(files, monkeypatch):
    monkeypatch.setattr(GpuMover, "borrow", lambda self, key: self.host._kept[key])
    monkeypatch.setattr(GpuMover, "give_back", lambda *_: None)
    wrong = 0
    for seed in range(8):
        run = Run(files, FakeDevice(seed), "exclusive, the rest on disk", miss="compute")
        run.borrows = False
        run.go(120, seed, interrupted=0.3)
        wrong += len(run.wrong)
    assert wrong


class Deaf(FakeStream):
    def follow(self, event: FakeEvent | None) -> None:
        pass


class Hasty(FakeEvent):
    def wait(self) -> None:
        pass


@pytest.mark.parametrize("tier", TIERS)
def test_a_cache_made_in_inference_mode_is_written_to_by_other_threads(files, tier):
    with torch.inference_mode():
        run = Run(files, FakeDevice(0), tier, threads=1)
    run.go(20, seed=0)
    run.cache.close()
    assert run.used
    assert not run.wrong


@pytest.mark.parametrize("stream", ["compute", "inward", "outward"])
def test_a_stream_that_follows_nothing_is_caught(files, stream):
    wrong = 0
    for seed in range(8):
        device = FakeDevice(seed)
        setattr(device, stream, Deaf(device))
        run = Run(files, device, "exclusive, the rest on disk")
        run.go(120, seed)
        wrong += len(run.wrong)
    assert wrong


def test_a_host_that_waits_for_no_event_is_caught(files, monkeypatch):
    monkeypatch.setattr("support.fake_device.FakeEvent", Hasty)
    wrong = 0
    for seed in range(8):
        run = Run(files, FakeDevice(seed), "disk")
        run.go(120, seed)
        wrong += len(run.wrong)
    assert wrong


def test_with_all_in_host_memory_no_record_is_read_from_disk_twice(files):
    run = Run(files, FakeDevice(0), "all in host memory")
    run.go(30 * LAYERS, 0)
    for layer in range(LAYERS):
        run.cache.acquire(layer, range(EXPERTS)).close()
        assert [*run.cache.acquire(layer, range(EXPERTS))]
        files.truncate(layer, records=0)
    run.go(30 * LAYERS, 1)
    assert run.wrong == []


def test_device_and_host_memory_together_hold_all_when_they_are_exclusive(files):
    run = Run(files, FakeDevice(0), "exclusive, nothing left on disk")
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            [*run.cache.acquire(layer, [expert])]
    for layer in range(LAYERS):
        files.truncate(layer, records=0)
    run.go(60 * LAYERS, 1)
    assert run.wrong == []
    assert len(run.mover.host) <= LAYERS * 4


def test_where_the_system_refuses_to_pin_one_notice_is_logged_and_memory_is_pageable(files, caplog):
    run = Run(files, FakeDevice(0, pins=1), "part in host memory")
    run.go(60, 0)
    assert run.wrong == []
    assert len(caplog.records) == 1
    assert "refuses to pin more (CUDA error: out of memory)" in str(run.pinned.notice)


def test_a_budget_for_pinned_memory_is_kept():
    device = FakeDevice(0)
    pinned = PinnedMemory(device, budget=3 * 4096)
    buffers = [pinned.allocate(4096) for _ in range(2)]
    assert "the budget for pinned memory is spent" in str(pinned.notice)
    assert [buffer.memory.data_ptr() % 4096 for buffer in buffers] == [0, 0]


def test_times_are_those_of_the_device(files):
    run = Run(files, FakeDevice(0), "all in host memory")
    with run.cache.record() as trace:
        run.go(40, 0)
    table = trace.to_frame()
    copies = table[table.kind == "copy"]
    assert len(copies)
    assert (copies.duration_ms > 0).all()


def test_no_copy_is_in_flight_after_the_cache_is_closed(files):
    run = Run(files, FakeDevice(3), "exclusive, the rest on disk", threads=1)
    run.go(30, 3)
    run.cache.prefetch(0, range(EXPERTS))
    run.cache.close()
    assert not any(s.work for s in (run.device.inward, run.device.outward, run.device.compute))
