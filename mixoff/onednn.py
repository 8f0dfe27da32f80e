"""One token without oneDNN on a CPU. Knows how a model is called; nothing of weights.

PyTorch gives products of bfloat16 to oneDNN, which is fast at many tokens and slow at one: the head
of a Mixtral took it 8.4 ms and PyTorch's own code 5.2, a router 17 microseconds and 3 (Zen 5, two
cores).
"""

import threading
from typing import Any

import torch
from torch import Tensor, nn

_onednn: Any = torch.backends.mkldnn
_lock = threading.Lock()
_inside: dict[int, bool] = {}  # threads that compute one token, and what was set before the first


def use_torch_for_one_token(model: nn.Module) -> None:
    """Let PyTorch's own code compute calls of a model with one token.

    It is a setting of the whole process: who computes many tokens in another thread meanwhile may
    take longer.
    """
    model.register_forward_pre_hook(_begin, with_kwargs=True)
    model.register_forward_hook(_end, always_call=True)


def _begin(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _leave()  # a call that was interrupted by the keyboard never ended
    ids = args[0] if args else kwargs.get("input_ids")
    if isinstance(ids, Tensor) and ids.numel() == 1 and ids.device.type == "cpu":
        with _lock:
            before = next(iter(_inside.values()), _onednn.enabled)
            _inside[threading.get_ident()] = before
            _onednn.enabled = False


def _end(model: nn.Module, args: tuple[Any, ...], result: Any) -> None:
    _leave()


def _leave() -> None:
    with _lock:
        before = _inside.pop(threading.get_ident(), None)
        if before is not None and not _inside:
            _onednn.enabled = before
