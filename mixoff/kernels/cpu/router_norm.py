"""Kernels of what a layer needs for one token besides matrices: a router's choice, and norms.

D numbers of a token, E experts.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from mixoff.kernels.cpu.codegen import normalize as normalizing
from mixoff.kernels.cpu.codegen import route as routing
from mixoff.kernels.cpu.compile import normalize_worker, route_worker, through_steps
from mixoff.kernels.cpu.operations import DTYPES, empty_bytes, empty_floats, fastest
from mixoff.kernels.cpu.threads import Operand, Step, Work

_WHOLE = 64  # columns that kernels go through at a time, without a rest


def takes_whole(x: Tensor, weight: Tensor) -> bool:
    """Return whether `route` and `normalize` take a token [..., D] and a weight [..., D]."""
    columns = x.shape[-1]
    return (
        x.numel() == columns == weight.shape[-1]
        and not columns % _WHOLE
        and x.device.type == weight.device.type == "cpu"
        and x.dtype is weight.dtype
        and x.dtype in DTYPES
        and weight.is_contiguous()
        and not (x.requires_grad or weight.requires_grad)
    )


def route(
    x: Tensor, weight: Tensor, top_k: int, *, isa: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one token's router logits [1, E], and its k largest ones' shares and experts [1, k].

    Shares are softmax of the k logits, in float32. x [..., D] and weight [E, D] are of one type,
    which logits are rounded to.
    """
    experts, columns = weight.shape
    logits, shares = empty_floats(1, experts), empty_floats(1, top_k)
    chosen = torch.empty(1, top_k, dtype=torch.int64, device="cpu")
    parts = {"x": x.contiguous(), "weight": weight, "logits": logits}
    parts |= {"taken": empty_bytes(experts), "shares": shares, "chosen": chosen}
    work = _routing(columns, experts, top_k, isa or fastest(), x.dtype is torch.bfloat16)
    work.run({name: part.data_ptr() for name, part in parts.items()})
    return logits.to(x.dtype), shares, chosen


@cache
def _routing(columns: int, experts: int, top_k: int, isa: str, halves: bool) -> Work:
    numbers = (columns, experts, top_k)
    return _alone(route_worker(isa, halves=halves), routing.BUFFERS, numbers)


def normalize(x: Tensor, weight: Tensor, epsilon: float, *, isa: str | None = None) -> Tensor:
    """Return one token over the root of its mean square, times weight, [..., D], as RMSNorm does.

    x and weight [D] are of one type, which x is rounded to before it is multiplied, and after.
    """
    given, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    work = _normalizing(len(weight), epsilon, isa or fastest(), x.dtype is torch.bfloat16)
    parts = {"x": given, "weight": weight, "out": out}
    work.run({name: part.data_ptr() for name, part in parts.items()})
    return out


@cache
def _normalizing(columns: int, epsilon: float, isa: str, halves: bool) -> Work:
    worker = normalize_worker(epsilon, isa, halves=halves)
    return _alone(worker, normalizing.BUFFERS, (columns,))


def _alone(worker: int, buffers: Sequence[str], numbers: Sequence[int]) -> Work:
    """Return work for one thread, with places for a kernel's buffers."""
    return Work([[Step(worker, [*map(Operand, buffers), *numbers], count=1)]], through_steps())
