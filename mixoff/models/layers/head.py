"""One token's products in bfloat16 without oneDNN, on a CPU. Knows layers; nothing of models.

PyTorch gives such products to oneDNN, which is fast at many tokens and slow at one: the head of a
Mixtral took it 8.4 ms and PyTorch's own code 5.2 (Zen 5, two cores).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_onednn: Any = torch.backends.mkldnn
_lock = threading.Lock()
_before: list[bool] = []  # what was set before each block that hasn't ended


class HeadWithoutOneDNN(nn.Linear):
    """A linear layer that takes one token of bfloat16 without oneDNN.

    The setting is the whole process's: products of other threads go without it, too, meanwhile.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + bias, [..., K] -> [..., N]."""
        one = x.numel() == x.shape[-1] and x.dtype is torch.bfloat16 and x.device.type == "cpu"
        if not one:
            return super().forward(x)
        with _without_onednn():
            return super().forward(x)


@contextmanager
def _without_onednn() -> Iterator[None]:
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
