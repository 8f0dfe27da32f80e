"""The time and host memory that loading a model takes, measured in a new process."""

import ctypes
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch
from transformers.utils import logging

from mixoff.checkpoints.formats import open_checkpoint
from mixoff.config import OffloadConfig
from mixoff.hub import named_checkpoint
from mixoff.known_models import demo_path
from mixoff.models.build import build_model
from mixoff.planning.plan import PREFILL_TOKENS, MemoryPlan, plan_memory

_EVERY_SECONDS = 0.001  # memory is read


@dataclass(frozen=True)
class LoadReport:
    """The time and memory of loading a model and reading a first prompt.

    Parameters
    ----------
    seconds
        Time of the call of `mixoff.build_model`, without imports.
    peak_nbytes
        Peak host memory of the process during loading and the prompt, less its memory before.
    libraries_nbytes
        Memory that libraries take for themselves when they are imported and first used. It doesn't
        depend on the model and is in no plan.
    plan
        The plan of the same run.
    """

    seconds: float
    peak_nbytes: int
    libraries_nbytes: int
    plan: MemoryPlan


def load_time(
    name_or_path: str | Path, offload: OffloadConfig | None = None, *, device: str = "cpu"
) -> LoadReport:
    """Return the time and host memory that loading a model takes, beside its plan.

    A new process first loads and frees the demo model, so that libraries have initialized. Then it
    loads the model and reads a prompt of random tokens, as many as a chat reads at once.

    Parameters
    ----------
    name_or_path, offload, device
        As `mixoff.build_model` takes them.
    """
    folder, offload = named_checkpoint(name_or_path).folder, offload or OffloadConfig()
    plan = plan_memory(open_checkpoint(folder), offload, device=device)
    # Spawned, not forked: a fork inherits this process's memory, and locks that its threads hold.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        measured = processes.submit(_measure, folder, offload, device, torch.get_num_threads())
        return LoadReport(*measured.result(), plan)


def _measure(
    folder: Path, offload: OffloadConfig, device: str, threads: int
) -> tuple[float, int, int]:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(threads)
    imported = _resident_nbytes()
    _load_and_read(demo_path(), OffloadConfig(), device)
    _release_freed_memory()
    before = _resident_nbytes()
    with _peak() as peak:
        seconds = _load_and_read(folder, offload, device)
    return seconds, peak.nbytes - before, before - imported


def _load_and_read(folder: Path, offload: OffloadConfig, device: str) -> float:
    """Load a model, read a prompt and free both; return the seconds that loading took."""
    began = time.perf_counter()
    model, cache = build_model(folder, offload, device=device)
    seconds = time.perf_counter() - began
    tokens = min(PREFILL_TOKENS, model.config.max_position_embeddings)
    ids = torch.randint(model.config.vocab_size, (1, tokens), device=model.device)
    with torch.inference_mode():
        model(input_ids=ids, use_cache=True)
    cache.close()
    return seconds


def _release_freed_memory() -> None:
    """Return freed memory to the system, where the allocator has a call for it (glibc's)."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident_nbytes() -> int:
    return int(psutil.Process().memory_info().rss)


@dataclass
class _Peak:
    nbytes: int = 0


@contextmanager
def _peak() -> Iterator[_Peak]:
    """Measure the process's peak memory inside the ``with`` block, by reading it repeatedly."""
    peak, over = _Peak(), threading.Event()

    def watch() -> None:
        while not over.wait(_EVERY_SECONDS):
            peak.nbytes = max(peak.nbytes, _resident_nbytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
        peak.nbytes = max(peak.nbytes, _resident_nbytes())
