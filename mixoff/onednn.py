"""One token's products in bfloat16 without oneDNN, on a CPU. Knows modules; nothing of models.

PyTorch gives such products to oneDNN, which is fast at many tokens and slow at one: the head of a
Mixtral took it 8.4 ms and PyTorch's own code 5.2, a router 17 microseconds and 3 (Zen 5, two
cores).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

_onednn: Any = torch.backends.mkldnn
_lock = threading.Lock()
_before: list[bool] = []  # what was set before each block that hasn't ended


class OneTokenWithout(nn.Module):
    """A module's ``forward`` that takes one token of bfloat16 without oneDNN.

    The setting is the whole process's: products of other threads go without it, too, meanwhile.
    """

    def forward(self, x: Tensor, *args: Any, **settings: Any) -> Any:
        """Return what the module does, of [..., K]."""
        one = x.numel() == x.shape[-1] and x.dtype is torch.bfloat16 and x.device.type == "cpu"
        if not one:
            return super().forward(x, *args, **settings)
        with _without_onednn():
            return super().forward(x, *args, **settings)


class LinearWithout(OneTokenWithout, nn.Linear):  # type: ignore[misc]  # forward's types
    """A linear layer that takes one token so."""


class RouterWithout(OneTokenWithout, MixtralTopKRouter):  # type: ignore[misc]  # forward's types
    """A router that takes one token so."""


_CLASSES: dict[type, type] = {nn.Linear: LinearWithout, MixtralTopKRouter: RouterWithout}


def use_torch_for_one_token(module: nn.Module) -> None:
    """Let a linear layer or a router take one token without oneDNN; others stay what they are."""
    module.__class__ = _CLASSES.get(type(module), type(module))


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
