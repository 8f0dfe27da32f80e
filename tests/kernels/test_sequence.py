"""Steps of a sequence wait for those before them, whichever threads do these, and however late."""

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
    """Stands in for compiled parts of a task: notes which parts are done, and in which order.

    Parts are taken one by one, as compiled ones are.
    """

    def __init__(self, done: list, name: str, before_part=lambda part: None) -> None:
        self._lock = threading.Lock()
        self.arguments: list[list[int]] = []
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
            self.arguments.append([fields[n] for n in range(2, len(TASK) + 1)])
            self._done.append((self._name, part))
            with _counting:
                count[0] += 1


_counting = threading.Lock()


@pytest.fixture(params=[1, 2, 5])
def count(request, monkeypatch):
    """Use so many threads of Python."""
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


def test_a_thread_that_waits_for_a_late_one_continues_when_that_is_done(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads, "_team", lambda process: None)
    done: list = []
    timeout = threading.Event()

    def late(part: int) -> None:
        if part == 1:
            timeout.wait(0.2)  # by then the other thread has done the rest, and waits

    first, second = Kernel(done, "a", late), Kernel(done, "b")
    steps = [[Step(kernel.address, [], count=8, least=1)] for kernel in (first, second)]
    Work(steps, sequence_code()).run()
    assert [name for name, _ in done] == ["a"] * 8 + ["b"] * 8
    assert done.index(("a", 1)) == 7


def test_interrupts_are_raised_only_when_all_threads_have_ended(monkeypatch):
    wait, interrupts, running = threads.wait, [KeyboardInterrupt(), KeyboardInterrupt()], []

    def interrupted(futures: Sequence[Future]) -> None:
        if interrupts:
            running.append(not futures[0].done())
            raise interrupts.pop()
        wait(futures)

    monkeypatch.setattr(threads, "wait", interrupted)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(time.sleep, 0.2)
        with pytest.raises(KeyboardInterrupt):
            threads._wait([future])
        assert future.done()
    assert running == [True, True]


def test_operands_are_filled_in_for_each_run():
    kernel = Kernel([], "a")
    step = Step(kernel.address, [Operand("x") + 24], count=1, first=5)
    work = Work([[step]], sequence_code())
    for x in (1000, 2000):
        work.run({"x": x})
    assert kernel.arguments == [[5, 1, 1024], [5, 1, 2024]]
    with pytest.raises(KeyError):
        work.run({"y": 1})


def test_a_sequence_has_the_layout_that_code_reads():
    step = Step(77, [8, Operand("x")], count=6, least=2, first=4)
    sequence, operands = threads._sequence([[step], [step, step]], threads=2)
    size = len(SEQUENCE) + 3 * len(STEP)
    assert [*sequence[: len(SEQUENCE)]] == [0, 3]
    assert [*sequence[len(SEQUENCE) : size]] == [
        *(77, 8 * size, 0),
        *(77, 8 * (size + 6), 3),
        *(77, 8 * (size + 12), 3),
    ]
    assert [*sequence[size:]] == [0, 3, 4, 6, 8, 0] * 3
    assert [index for index, _ in operands] == [size + 5, size + 11, size + 17]
