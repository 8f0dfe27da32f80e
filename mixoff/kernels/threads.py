"""Work shared out among threads, as many as torch is set to. Knows ranges; nothing of kernels.

Where torch computes with OpenMP, its own team does the work: it is awake, and two teams never
fight for the same cores. Elsewhere threads of Python do.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache

import torch

HEADER = (
    "taken",
    "parts",
    "first",
    "count",
)  # what a task begins with, before a kernel's arguments

_PARTS_PER_THREAD = 4  # one that comes late takes fewer


@dataclass(frozen=True)
class Worker:
    """Compiled code that does parts of a task until none is left: any number of threads may.

    Parameters
    ----------
    function
        Is called with a task's address.
    address
        Where its code begins.
    """

    function: Callable[[int], None]
    address: int


def share_out(
    worker: Worker,
    arguments: Sequence[int],
    *,
    first: int,
    count: int,
    least: int,
    spared: int = 0,
) -> None:
    """Let threads work on a range; return when all of it is done.

    Parameters
    ----------
    arguments
        What the worker's kernel takes besides its part of the range.
    first, count
        The range.
    least
        A thread gets no fewer than these at a time, since waking one takes time, too.
    spared
        How many threads fewer there are than torch is set to; one is always left.
    """
    most = count // max(1, least)
    threads = max(1, min(torch.get_num_threads() - spared, most))
    parts = max(1, min(_PARTS_PER_THREAD * threads, most)) if threads > 1 else 1
    task = (ctypes.c_int64 * (len(HEADER) + len(arguments)))(0, parts, first, count, *arguments)
    if threads == 1:
        worker.function(ctypes.addressof(task))
    elif (team := _team(os.getpid())) is not None:
        team(worker.address, ctypes.addressof(task), threads, 0)
    else:
        _share_out_in_python(worker, ctypes.addressof(task), threads)


def _share_out_in_python(worker: Worker, task: int, threads: int) -> None:
    pool = _pool(os.getpid(), threads - 1)
    others = [pool.submit(worker.function, task) for _ in range(threads - 1)]
    try:
        worker.function(task)
    finally:
        wait(others)
    for other in others:
        other.result()


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
