"""Rows shared out among threads, as many as torch is set to. Knows ranges; nothing of kernels."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise

import torch

Work = Callable[[int, int], None]


def share_out(work: Work, count: int, *, least: int, spared: int = 0) -> None:
    """Call `work(first, last)` for parts of a range, in threads; return when all are done.

    Parameters
    ----------
    count
        The range is 0 to `count`.
    least
        A thread gets no fewer than these, since waking one takes time, too.
    spared
        How many threads fewer there are than torch is set to: parts are alike, so that all wait
        for one whose core something else works on.
    """
    threads = max(1, min(torch.get_num_threads() - spared, count // max(1, least)))
    if threads == 1:
        work(0, count)
        return
    own, *parts = pairwise([count * n // threads for n in range(threads + 1)])
    pool = _pool(os.getpid(), threads - 1)
    others = [pool.submit(work, *part) for part in parts]
    try:
        work(*own)
    finally:
        wait(others)
    for other in others:
        other.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return threads of this process: a forked child has none of its parent's."""
    return ThreadPoolExecutor(threads, "mixoff-kernel")
