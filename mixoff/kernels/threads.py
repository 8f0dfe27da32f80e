"""Rows shared out among threads, as many as torch is set to. Knows ranges; nothing of kernels."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import torch

Work = Callable[[int, int], None]


def share_out(work: Work, count: int, *, least: int) -> None:
    """Call `work(first, last)` for parts of a range, in threads; return when all are done.

    Parameters
    ----------
    count
        The range is 0 to `count`.
    least
        A thread gets no fewer than these, since waking one takes time, too.
    """
    threads = max(1, min(torch.get_num_threads(), count // max(1, least)))
    if threads == 1:
        work(0, count)
        return
    edges = [count * n // threads for n in range(threads + 1)]
    pool = _pool(os.getpid(), threads - 1)
    others = [pool.submit(work, *edge) for edge in zip(edges[1:-1], edges[2:], strict=True)]
    try:
        work(edges[0], edges[1])
    finally:
        wait(others)
    for other in others:
        other.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return threads of this process: a forked child has none of its parent's."""
    return ThreadPoolExecutor(threads, "mixoff-kernel")
