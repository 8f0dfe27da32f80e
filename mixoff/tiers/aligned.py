"""Memory that starts on a page boundary. Knows sizes and pages; nothing of records."""

import mmap
from contextlib import suppress

import torch
from torch import Tensor

PAGE = 4096  # bytes; records start on a page boundary, which direct I/O requires

_HUGE_PAGE = 2 << 20  # bytes
_HUGE_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux only


def align(nbytes: int, to: int) -> int:
    """Return the smallest multiple of `to` that is at least `nbytes`."""
    return -(-nbytes // to) * to


def aligned_buffer(nbytes: int, device: torch.device | str = "cpu") -> Tensor:
    """Return an uninitialized uint8 tensor [nbytes] that starts on a page boundary.

    On a CPU, a large buffer starts on a huge page and the system is advised to back it with huge
    pages: direct reads pin fewer pages and matrix products look up fewer. It is never an inference
    tensor, whatever mode the caller is in: transfer threads write into it outside that mode.
    """
    if _HUGE_ADVICE is not None and torch.device(device).type == "cpu" and nbytes >= _HUGE_PAGE:
        return _huge_buffer(nbytes, _HUGE_ADVICE)
    with torch.inference_mode(False):
        raw = torch.empty(nbytes + PAGE, dtype=torch.uint8, device=device)
        start = -raw.data_ptr() % PAGE
        return raw[start : start + nbytes]


def _huge_buffer(nbytes: int, advice: int) -> Tensor:
    """Return a tensor [nbytes] in huge pages; a last part smaller than one is in normal pages."""
    memory = mmap.mmap(-1, nbytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with torch.inference_mode(False):
        raw = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the mapping alive
        start = -raw.data_ptr() % _HUGE_PAGE
        with suppress(OSError):  # a system without huge pages uses normal ones
            memory.madvise(advice, start, nbytes // _HUGE_PAGE * _HUGE_PAGE)
        return raw[start : start + nbytes]
