"""Pauses of a model: tests decide when it computes a token, and which error it raises."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

LIMIT_S = 60.0


class ModelPause:
    """Makes a model wait before each call, until a test permits the call from any thread.

    Attributes
    ----------
    reached
        How many calls of the model have reached the pause.
    error
        Raised there instead of computing; None for no error.
    """

    def __init__(self) -> None:
        self.reached = 0
        self.error: BaseException | None = None
        self._permits = threading.Semaphore(0)
        self._is_over = False
        self._permitted = 0

    def wait(self, *_: Any) -> None:
        self.reached += 1
        if not self._is_over:
            assert self._permits.acquire(timeout=LIMIT_S), "no call was permitted"
        if self.error is not None:
            raise self.error

    def step(self, calls: int = 1) -> None:
        """Permit so many calls, and wait until the model reaches the pause after them."""
        self._permitted += calls
        self._permits.release(calls)
        until(lambda: self.reached > self._permitted)

    def resume(self) -> None:
        """Permit all further calls."""
        self._is_over = True
        self._permits.release(1000)


@contextmanager
def paused(model: torch.nn.Module) -> Iterator[ModelPause]:
    pause = ModelPause()
    handle = model.register_forward_pre_hook(pause.wait)
    try:
        yield pause
    finally:
        pause.resume()
        handle.remove()


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.002)
