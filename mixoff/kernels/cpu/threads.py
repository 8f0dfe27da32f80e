"""Work that is divided among threads, as many as torch is set to. Knows ranges; no kernels.

Where torch computes with OpenMP, torch's own threads do the work: they are awake already, and two
sets of threads would compete for the same cores. Elsewhere threads of Python do.
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

# The fields of a sequence, of each of its steps, and of a task before its arguments.
SEQUENCE, STEP = ("done", "steps"), ("code", "task", "before")
TASK = ("taken", "parts", "first", "count")

_PARTS_PER_THREAD = 4  # a thread that starts late takes fewer of them
_NO_OPERANDS: Mapping[str, int] = MappingProxyType({})


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
    """Work on a range, which may be divided into parts.

    Parameters
    ----------
    code
        Address of the code that does parts of a task until none is left. Several threads may run it
        on one task.
    arguments
        The kernel's arguments besides its part of the range.
    count, first
        The range.
    least
        The fewest of the range that are worth a thread: waking one takes time, too.
    """

    code: int
    arguments: Sequence[Argument]
    count: int
    least: int = 1
    first: int = 0

    @property
    def most(self) -> int:
        """The most parts that it may be divided into."""
        return max(1, self.count // max(1, self.least))


@dataclass(frozen=True)
class Code:
    """Compiled code that does what is left of a sequence of steps.

    Parameters
    ----------
    function
        Takes a sequence's address.
    address
        Address of the code.
    """

    function: Callable[[int], None]
    address: int


class Work:
    """Stages of steps, one stage after the other, for any number of runs.

    Several threads of Python may run it at once: each run has a sequence of its own.

    Parameters
    ----------
    by
        The code that each thread runs.
    """

    def __init__(self, stages: Sequence[Sequence[Step]], by: Code) -> None:
        self._stages, self._by = stages, by
        self._most = max(step.most for stage in stages for step in stage)
        self._sequences: dict[int, tuple[array[int], list[tuple[int, Operand]]]] = {}

    def run(self, operands: Mapping[str, int] = _NO_OPERANDS, *, reserved_threads: int = 0) -> None:
        """Do all steps, and return when they are done.

        Parameters
        ----------
        operands
            The values of all operands, by name.
        reserved_threads
            How many of torch's threads are left to other work; one always computes.
        """
        threads = max(1, min(torch.get_num_threads() - reserved_threads, self._most))
        if threads not in self._sequences:
            self._sequences[threads] = _sequence(self._stages, threads)
        template, indices = self._sequences[threads]
        sequence = template[:]  # threads count in it what is taken and done
        for index, operand in indices:
            sequence[index] = operands[operand.name] + operand.offset
        address, _ = sequence.buffer_info()
        if threads == 1:
            self._by.function(address)
        elif (team := _team(os.getpid())) is not None:
            team(self._by.address, address, threads, 0)
        else:
            _run_in_python(self._by, address, threads)


def _sequence(
    stages: Sequence[Sequence[Step]], threads: int
) -> tuple["array[int]", list[tuple[int, Operand]]]:
    """Return a sequence as `codegen.sequence` reads it, and the indices of operands in it.

    A step may begin when as many parts are done as all stages before its own have. One count for
    all steps suffices: none of the parts that it counts until then can be of this stage or a later
    one, since those haven't begun.
    """
    size = len(SEQUENCE) + len(STEP) * sum(map(len, stages))
    steps: list[int] = []
    tasks: list[int] = []
    indices: list[tuple[int, Operand]] = []
    total = 0
    for stage in stages:
        before = total
        for step in stage:
            own_threads = min(threads, step.most)
            parts = min(_PARTS_PER_THREAD * own_threads, step.most) if own_threads > 1 else 1
            steps += (step.code, 8 * (size + len(tasks)), before)
            tasks += (0, parts, step.first, step.count)
            for argument in step.arguments:
                if isinstance(argument, Operand):
                    indices.append((size + len(tasks), argument))
                tasks.append(0 if isinstance(argument, Operand) else argument)
            total += parts
    return array("q", (0, len(steps) // len(STEP), *steps, *tasks)), indices


def _run_in_python(by: Code, sequence: int, threads: int) -> None:
    """Run a sequence in Python's threads.

    It returns, or raises, only when all of them have ended: the caller then frees the sequence and
    the tensors that they read and write.
    """
    pool = _pool(os.getpid(), threads - 1)
    futures: list[Future[None]] = []
    try:
        for _ in range(threads - 1):
            futures.append(pool.submit(by.function, sequence))
        by.function(sequence)
    finally:
        _wait(futures)
    for future in futures:
        future.result()


def _wait(futures: Sequence[Future[None]]) -> None:
    """Wait for all, even if interrupted; the last interrupt is raised at the end."""
    interrupt, are_done = None, False
    while not are_done:
        try:
            wait(futures)
            are_done = True
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the worker threads of a process: a forked child has none of its parent's."""
    return ThreadPoolExecutor(threads, "mixoff-kernel")


_imported_by = os.getpid()


@cache
def _team(process: int) -> Callable[[int, int, int, int], None] | None:
    """Return the function that runs code in the OpenMP threads of torch; None if there is none.

    A forked child can't use it: the threads of its parent don't exist there, and OpenMP would wait
    for them without end.
    """
    if process != _imported_by or "OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel  # libgomp's; other libraries have it, too
    except (AttributeError, OSError, TypeError):  # TypeError: on Windows
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    run: Callable[[int, int, int, int], None] = parallel
    return run
