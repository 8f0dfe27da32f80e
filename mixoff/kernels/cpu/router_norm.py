"""Kernels for one token's router and norms: what a layer computes besides matrices.

D numbers of a token, E experts.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from mixoff.kernels.cpu.codegen import normalize as normalize_code
from mixoff.kernels.cpu.codegen import route as route_code
from mixoff.kernels.cpu.codegen.floats import AT_ONCE
from mixoff.kernels.cpu.compile import normalize_worker, route_worker, sequence_code
from mixoff.kernels.cpu.operations import DTYPES, empty_bytes, empty_floats, fastest
from mixoff.kernels.cpu.threads import Operand, Step, Work


def takes_whole(x: Tensor, weight: Tensor) -> bool:
    """Return whether `route` and `normalize` take a token [..., D] and a weight [..., D]."""
    columns = x.shape[-1]
    return (
        x.numel() == columns == weight.shape[-1]
        and not columns % AT_ONCE
        and x.device.type == weight.device.type == "cpu"
        and x.dtype is weight.dtype
        and x.dtype in DTYPES
        and weight.is_contiguous()
        and not (x.requires_grad or weight.requires_grad)
    )


def route(
    x: Tensor, weight: Tensor, top_k: int, *, isa: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one token's router logits [1, E], and shares and experts of the k largest [1, k].

    Shares are softmax of the k logits, in float32. x [..., D] and weight [E, D] are of one type,
    to which logits are rounded.
    """
    experts, columns = weight.shape
    logits, shares = empty_floats(1, experts), empty_floats(1, top_k)
    chosen = torch.empty(1, top_k, dtype=torch.int64, device="cpu")
    tensors = {"x": x.contiguous(), "weight": weight, "logits": logits}
    tensors |= {"taken": empty_bytes(experts), "shares": shares, "chosen": chosen}
    work = _route_work(columns, experts, top_k, isa or fastest(), x.dtype is torch.bfloat16)
    work.run({name: tensor.data_ptr() for name, tensor in tensors.items()})
    return logits.to(x.dtype), shares, chosen


@cache
def _route_work(columns: int, experts: int, top_k: int, isa: str, bfloat16: bool) -> Work:
    numbers = (columns, experts, top_k)
    return _for_one_thread(route_worker(isa, bfloat16=bfloat16), route_code.BUFFERS, numbers)


def normalize(x: Tensor, weight: Tensor, epsilon: float, *, isa: str | None = None) -> Tensor:
    """Return RMSNorm of one token: x over the root of its mean square, times weight, [..., D].

    x and weight [D] are of one type, to which x is rounded before it is multiplied, and after.
    """
    token, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    work = _normalize_work(len(weight), epsilon, isa or fastest(), x.dtype is torch.bfloat16)
    tensors = {"x": token, "weight": weight, "out": out}
    work.run({name: tensor.data_ptr() for name, tensor in tensors.items()})
    return out


@cache
def _normalize_work(columns: int, epsilon: float, isa: str, bfloat16: bool) -> Work:
    worker = normalize_worker(epsilon, isa, bfloat16=bfloat16)
    return _for_one_thread(worker, normalize_code.BUFFERS, (columns,))


def _for_one_thread(worker: int, buffers: Sequence[str], numbers: Sequence[int]) -> Work:
    """Return work for one thread, with a kernel's buffers as operands."""
    return Work([[Step(worker, [*map(Operand, buffers), *numbers], count=1)]], sequence_code())
