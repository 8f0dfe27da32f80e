"""A head that computes one token in bfloat16 without oneDNN, on a CPU. Knows layers, no models.

PyTorch gives such products to oneDNN, which is fast for many tokens and slow for one: with it the
head of Mixtral-8x7B took 8.4 ms, and with PyTorch's own code 5.2 (Zen 5, two cores).

oneDNN can only be switched for the whole process, and this is the one module that does so: while
one head computes one token, products of other threads are computed without it, too.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_onednn: Any = torch.backends.mkldnn
_lock = threading.Lock()
_before: list[bool] = []  # the setting before each block that hasn't ended, of all threads


class HeadWithoutOneDNN(nn.Linear):
    """A linear layer that computes one token of bfloat16 without oneDNN.

    ``head.without_onednn = False`` leaves the process's setting alone.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.without_onednn = True

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + bias, [..., K] -> [..., N]."""
        one_token = x.numel() == x.shape[-1] and x.device.type == "cpu"
        if not (self.without_onednn and one_token and x.dtype is torch.bfloat16):
            return super().forward(x)
        with _without_onednn():
            return super().forward(x)


@contextmanager
def _without_onednn() -> Iterator[None]:
    # Blocks of several threads may overlap: the first to begin remembers the setting, and the last
    # to end restores it.
    with _lock:
        _before.append(_before[0] if _before else _onednn.enabled)
        _onednn.enabled = False
    try:
        yield
    finally:
        with _lock:
            before = _before.pop()
            if not _before:
                _onednn.enabled = before
