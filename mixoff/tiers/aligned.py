"""Memory that starts on a page. Knows sizes and pages; nothing of records."""

import mmap
from contextlib import suppress

import torch
from torch import Tensor

PAGE = 4096  # bytes; records start on a page, as direct I/O wants them


_HUGE_PAGE = 2 << 20  # bytes


_HUGE_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux has it


def align(nbytes: int, to: int) -> int:
    """Return the next multiple of `to`."""
    return -(-nbytes // to) * to


def aligned_buffer(nbytes: int, device: torch.device | str = "cpu") -> Tensor:
    """Return an uninitialized uint8 tensor [nbytes] that starts on a page, a huge one if it can.

    A CPU's large buffer asks the system for huge pages: direct reads have fewer pages to pin, and
    products fewer to look up. Other threads write into it whatever mode the caller is in, which
    they couldn't if it were an inference tensor.
    """
    if _HUGE_ADVICE is not None and torch.device(device).type == "cpu" and nbytes >= _HUGE_PAGE:
        return _huge_buffer(nbytes, _HUGE_ADVICE)
    with torch.inference_mode(False):
        raw = torch.empty(nbytes + PAGE, dtype=torch.uint8, device=device)
        start = -raw.data_ptr() % PAGE
        return raw[start : start + nbytes]


def _huge_buffer(nbytes: int, advice: int) -> Tensor:
    """Return a tensor [nbytes] that starts on a huge page; what fills none is in usual ones."""
    memory = mmap.mmap(-1, nbytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with torch.inference_mode(False):
        raw = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory while it lives
        start = -raw.data_ptr() % _HUGE_PAGE
        with suppress(OSError):  # a system that has none of them serves as well
            memory.madvise(advice, start, nbytes // _HUGE_PAGE * _HUGE_PAGE)
        return raw[start : start + nbytes]
