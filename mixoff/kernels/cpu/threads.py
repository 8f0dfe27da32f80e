"""Work shared out among threads, as many as torch is set to. Knows ranges; nothing of kernels.

Where torch computes with OpenMP, its own team does the work: it is awake, and two teams never
fight for the same cores. Elsewhere threads of Python do.
"""

import ctypes
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import torch

# What sequences, their steps and tasks are made of, before a task's arguments.
SEQUENCE, STEP = ("done", "steps"), ("code", "task", "before")
TASK = ("taken", "parts", "first", "count")

_PARTS_PER_THREAD = 4  # one that comes late takes fewer
_NOTHING: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Operand:
    """An address or number that differs from run to run, or one so many bytes behind it."""

    name: str
    offset: int = 0

    def __add__(self, nbytes: int) -> "Operand":
        return Operand(self.name, self.offset + nbytes)


Argument = int | Operand


@dataclass(frozen=True)
class Step:
    """Work on a range.

    Parameters
    ----------
    code
        Where code begins that does parts of a task until none is left: any number of threads may.
    arguments
        What its kernel takes besides its part of the range.
    count, first
        The range.
    least
        A thread gets no fewer than these at a time, since waking one takes time, too.
    """

    code: int
    arguments: Sequence[Argument]
    count: int
    least: int = 1
    first: int = 0

    @property
    def most(self) -> int:
        """In how many parts it may be done, at most."""
        return max(1, self.count // max(1, self.least))


@dataclass(frozen=True)
class Code:
    """Compiled code that goes through what is left of a sequence of steps.

    Parameters
    ----------
    function
        Is called with a sequence's address.
    address
        Where its code begins.
    """

    function: Callable[[int], None]
    address: int


class Work:
    """Stages of steps, one stage after the other, that threads may be let go through many times.

    Parameters
    ----------
    by
        What each thread calls.
    """

    def __init__(self, stages: Sequence[Sequence[Step]], by: Code) -> None:
        self._stages, self._by = stages, by
        self._most = max(step.most for stage in stages for step in stage)
        self._sequences: dict[int, tuple[array[int], list[tuple[int, Operand]]]] = {}

    def run(self, values: Mapping[str, int] = _NOTHING, *, spared: int = 0) -> None:
        """Return when all is done.

        Parameters
        ----------
        values
            What stands for each place.
        spared
            How many threads fewer there are than torch is set to; one is always left.
        """
        threads = max(1, min(torch.get_num_threads() - spared, self._most))
        if threads not in self._sequences:
            self._sequences[threads] = _sequence(self._stages, threads)
        template, places = self._sequences[threads]
        sequence = template[:]
        for index, place in places:
            sequence[index] = values[place.name] + place.offset
        address, _ = sequence.buffer_info()
        if threads == 1:
            self._by.function(address)
        elif (team := _team(os.getpid())) is not None:
            team(self._by.address, address, threads, 0)
        else:
            _share_out_in_python(self._by, address, threads)


def _sequence(
    stages: Sequence[Sequence[Step]], threads: int
) -> tuple["array[int]", list[tuple[int, Operand]]]:
    """Return what threads go through (`codegen.sequence`), and where in it places are."""
    size = len(SEQUENCE) + len(STEP) * sum(map(len, stages))
    steps: list[int] = []
    tasks: list[int] = []
    places: list[tuple[int, Operand]] = []
    total = 0
    for stage in stages:
        before = total
        for step in stage:
            own = min(threads, step.most)
            parts = min(_PARTS_PER_THREAD * own, step.most) if own > 1 else 1
            steps += (step.code, 8 * (size + len(tasks)), before)
            tasks += (0, parts, step.first, step.count)
            for argument in step.arguments:
                if isinstance(argument, Operand):
                    places.append((size + len(tasks), argument))
                tasks.append(0 if isinstance(argument, Operand) else argument)
            total += parts
    return array("q", (0, len(steps) // len(STEP), *steps, *tasks)), places


def _share_out_in_python(by: Code, sequence: int, threads: int) -> None:
    """Let Python's threads go through a sequence; nobody may leave before all have, or be freed."""
    pool = _pool(os.getpid(), threads - 1)
    others: list[Future[None]] = []
    try:
        for _ in range(threads - 1):
            others.append(pool.submit(by.function, sequence))
        by.function(sequence)
    finally:
        _wait(others)
    for other in others:
        other.result()


def _wait(others: Sequence[Future[None]]) -> None:
    """Wait for all, through interrupts, too, the last of which is raised then."""
    interrupt, are_done = None, False
    while not are_done:
        try:
            wait(others)
            are_done = True
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return threads of this process: a forked child has none of its parent's."""
    return ThreadPoolExecutor(threads, "mixoff-kernel")


_imported_by = os.getpid()


@cache
def _team(process: int) -> Callable[[int, int, int, int], None] | None:
    """Return what runs code in OpenMP's threads, those that torch uses; None if nothing does.

    A child that was forked has none: its parent's team is lost, and waiting for it never ends.
    """
    if process != _imported_by or "OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel  # libgomp's, which others have, too
    except (AttributeError, OSError, TypeError):  # TypeError: on Windows
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    run: Callable[[int, int, int, int], None] = parallel
    return run
