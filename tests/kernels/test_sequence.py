"""Steps of a sequence wait for those before them, whoever does these, and however late."""

import ctypes
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("llvmlite", reason="kernels are compiled by it")

from mixoff.kernels.cpu import threads
from mixoff.kernels.cpu.compile import sequence_code
from mixoff.kernels.cpu.threads import SEQUENCE, STEP, TASK, Operand, Step, Work

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
Longs = ctypes.POINTER(ctypes.c_int64)


class Kernel:
    """Stands in for compiled parts of a task: notes who does which part, and when.

    Parts are taken one by one, as compiled ones are.
    """

    def __init__(self, done: list, name: str, before_part=lambda part: None) -> None:
        self._lock = threading.Lock()
        self.given: list[list[int]] = []
        self.code = KERNEL(self._run)
        self._done, self._name, self._before_part = done, name, before_part

    @property
    def address(self) -> int:
        return ctypes.cast(self.code, ctypes.c_void_p).value

    def _run(self, task: int, sequence: int) -> None:
        fields, count = ctypes.cast(task, Longs), ctypes.cast(sequence, Longs)
        while True:
            with self._lock:
                part = fields[0]
                fields[0] += 1
            if part >= fields[1]:
                return
            self._before_part(part)
            self.given.append([fields[n] for n in range(2, len(TASK) + 1)])
            self._done.append((self._name, part))
            with _counting:
                count[0] += 1


_counting = threading.Lock()


@pytest.fixture(params=[1, 2, 5])
def count(request, monkeypatch):
    """Let so many threads of Python work."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    monkeypatch.setattr(threads, "_team", lambda process: None)
    return request.param


def test_no_stage_begins_before_the_one_before_it_is_done(count):
    done: list = []
    kernels = [Kernel(done, name) for name in "abcd"]
    a, b, c, d = (Step(kernel.address, [], count=40, least=1) for kernel in kernels)
    work = Work([[a], [b, c], [d]], sequence_code())
    for _ in range(20):
        done.clear()
        work.run()
        names = "".join(name for name, _ in done)
        parts = len(names) // 4
        assert names.startswith("a" * parts)
        assert names.endswith("d" * parts)
        assert {*done} == {(name, part) for name in "abcd" for part in range(parts)}


def test_who_waits_for_a_late_thread_goes_on_when_it_is_done(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads, "_team", lambda process: None)
    done: list = []
    others_wait = threading.Event()

    def late(part: int) -> None:
        if part == 1:
            others_wait.wait(0.2)  # by then the other thread has done the rest, and waits

    first, second = Kernel(done, "a", late), Kernel(done, "b")
    steps = [[Step(kernel.address, [], count=8, least=1)] for kernel in (first, second)]
    Work(steps, sequence_code()).run()
    assert [name for name, _ in done] == ["a"] * 8 + ["b"] * 8
    assert done.index(("a", 1)) == 7


def test_who_waits_for_others_leaves_when_they_are_done_whatever_interrupts(monkeypatch):
    wait, interrupts, go_on = threads.wait, [KeyboardInterrupt(), KeyboardInterrupt()], []

    def interrupted(others: Sequence[Future]) -> None:
        if interrupts:
            go_on.append(not others[0].done())
            raise interrupts.pop()
        wait(others)

    monkeypatch.setattr(threads, "wait", interrupted)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(time.sleep, 0.2)
        with pytest.raises(KeyboardInterrupt):
            threads._wait([other])
        assert other.done()
    assert go_on == [True, True]


def test_places_are_filled_in_anew_each_time():
    kernel = Kernel([], "a")
    step = Step(kernel.address, [Operand("x") + 24], count=1, first=5)
    work = Work([[step]], sequence_code())
    for x in (1000, 2000):
        work.run({"x": x})
    assert kernel.given == [[5, 1, 1024], [5, 1, 2024]]
    with pytest.raises(KeyError):
        work.run({"y": 1})


def test_what_is_written_is_what_code_reads():
    step = Step(77, [8, Operand("x")], count=6, least=2, first=4)
    sequence, places = threads._sequence([[step], [step, step]], threads=2)
    size = len(SEQUENCE) + 3 * len(STEP)
    assert [*sequence[: len(SEQUENCE)]] == [0, 3]
    assert [*sequence[len(SEQUENCE) : size]] == [
        *(77, 8 * size, 0),
        *(77, 8 * (size + 6), 3),
        *(77, 8 * (size + 12), 3),
    ]
    assert [*sequence[size:]] == [0, 3, 4, 6, 8, 0] * 3
    assert [index for index, _ in places] == [size + 5, size + 11, size + 17]
