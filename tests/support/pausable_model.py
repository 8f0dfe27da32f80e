"""A gate before a model: tests decide when it computes a token, and what goes wrong then."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

LIMIT_S = 60.0


class GatedActivation:
    """Lets a model compute only when it is told to, from any thread.

    Attributes
    ----------
    waiting
        How many calls of the model have come to the gate.
    error
        What to raise there instead of computing; None for nothing.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.error: BaseException | None = None
        self._permits = threading.Semaphore(0)
        self._is_open = False
        self._let = 0

    def hold(self, *_: Any) -> None:
        self.waiting += 1
        if not self._is_open:
            assert self._permits.acquire(timeout=LIMIT_S), "nobody opened the gate"
        if self.error is not None:
            raise self.error

    def let(self, calls: int = 1) -> None:
        """Let the model compute so many times, and wait until it comes to the gate again."""
        self._let += calls
        self._permits.release(calls)
        until(lambda: self.waiting > self._let)

    def open(self) -> None:
        self._is_open = True
        self._permits.release(1000)


@contextmanager
def gated(model: torch.nn.Module) -> Iterator[GatedActivation]:
    gate = GatedActivation()
    handle = model.register_forward_pre_hook(gate.hold)
    try:
        yield gate
    finally:
        gate.open()
        handle.remove()


def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.002)
