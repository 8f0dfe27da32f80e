"""The codes, scales and zeros of half-quadratic quantization, found block by block.

Knows groups of weights; knows nothing of packing, nor of how scales and zeros are stored.

The method, its constants and its end are those of the package hqq (Badri and Shaji, 2023). Scales
stay as the groups' ranges give them, and each of up to 20 steps moves the zeros. Let s be a group's
inverse scale and z its zero, q = round(w s + z) within the codes, and r = w s + z - q, so that the
error of a weight is r / s. hqq shrinks it to e = sign(r) max(0, |r / s| - |r / s|^-0.3 / beta), and
its next zero is the group's mean of q - (w - e) s. That is z - mean(r - s e), and r - s e is
r min(1, (|r| / reach)^-1.3) with reach = s / beta^(1/1.3): the mean of r, in which what lies beyond
`reach` weighs less. Next to nothing does in trained matrices (|r| <= 1/2 unless q was clamped), and
powers would cost more than all the rest.

hqq ends with the first step before which the whole matrix's mean |r / s|, in float32, is not below
what it was one step earlier. No block knows that. So blocks go five steps at a time and keep the
zeros of each, the matrix's error tells whether one of these ends it, and if none does they go on.
Neither blocks nor threads change a result: sums over a group are one row's, and the errors of
groups add up as integers.

Letters: G groups of a matrix, B groups of a block, S = group_size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from mixoff.errors import ConfigError

_STEPS, _STEPS_AT_A_TIME = 20, 5
_BETA, _POWER = 10.0, 1.3  # the power is 2 - 0.7: |e|^0.7 is minimized
_NARROWEST, _MAX_INVERSE_SCALE = 1e-4, 2e4  # narrower groups have a scale of 1
_MAX_ERROR = 16  # in ranges: zeros leave the first ones by half a code a step at most
_MAX_ZERO = torch.finfo(torch.float16).max
_BLOCK = 1 << 19  # weights: three float32 tensors of this size stay in cache
_GPU_BLOCK = 1 << 24
_VECTORS, _PIECE = 64, 1 << 14  # weights, see _powers


def solve(
    weight: Tensor, nbits: int, group_size: int, *, axis: int, block: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return uint8 codes, float32 scales and zeros: W = (codes - zero) * scale.

    Parameters
    ----------
    weight
        An [N, K] matrix in a floating point type, which stays as it is.
    nbits
        Bits of a code.
    group_size
        Weights that share a scale and a zero.
    axis
        1: groups are the rows of `weight.reshape(-1, group_size)`: codes [G, S], scales and
        zeros [G, 1]. 0: they are the columns of `weight.reshape(group_size, -1)`: [S, G], [1, G].
    block
        Weights that are worked on at a time. It changes memory and time, not the result.

    Raises
    ------
    ConfigError
        If a weight isn't finite, or float16 can't hold a zero of this matrix.
    """
    matrix = weight.detach()
    groups = matrix.reshape(-1, group_size) if axis else matrix.reshape(group_size, -1).T  # [G, S]
    problem = _Problem.of(groups, nbits, block or (_GPU_BLOCK if weight.is_cuda else _BLOCK))
    zero = problem.solve() if problem.is_finite() else None  # [G, 1]
    if zero is None or not (zero.abs() <= _MAX_ZERO).all():
        rows, columns = weight.shape
        raise ConfigError(
            f"a {rows} x {columns} matrix has weights that aren't finite, or groups too narrow "
            "and too far from zero for HQQ: store it with Unquantized()."
        )
    shape = groups.shape if axis else groups.T.shape
    codes = torch.empty(shape, dtype=torch.uint8, device=weight.device)
    problem.encode(zero, codes if axis else codes.T)
    scale = problem.inverse_scale.reciprocal_()
    return (codes, scale, zero) if axis else (codes, scale.T, zero.T)


@dataclass(frozen=True)
class _Problem:
    """What a matrix's zeros depend on, cut into blocks."""

    blocks: tuple[Tensor, ...]  # [B, S] each
    last_code: int
    inverse_scale: Tensor  # [G, 1]
    first_zero: Tensor  # [G, 1]
    largest: float  # of the weights' magnitudes

    @classmethod
    def of(cls, groups: Tensor, nbits: int, block: int) -> "_Problem":
        blocks = groups.tensor_split(min(len(groups), -(-groups.numel() // block)))
        low = torch.cat([b.amin(1, keepdim=True) for b in blocks]).float()  # [G, 1]
        high = torch.cat([b.amax(1, keepdim=True) for b in blocks]).float()  # [G, 1]
        inverse_scale = (2**nbits - 1) / (high - low)
        inverse_scale[high - low <= _NARROWEST] = 1.0
        inverse_scale.clamp_(max=_MAX_INVERSE_SCALE)
        zero = -low * inverse_scale
        largest = torch.maximum(high.max(), -low.min()).item()
        first_zero = zero.round_() if nbits == 4 else zero
        return cls(blocks, 2**nbits - 1, inverse_scale, first_zero, largest)

    def is_finite(self) -> bool:
        """Whether all weights are numbers, and the ranges of all groups too."""
        return math.isfinite(self.largest) and bool((self.inverse_scale > 0).all())

    def solve(self) -> Tensor:
        """Return the zeros [G, 1] that hqq's steps lead to."""
        kept = self.first_zero.repeat(_STEPS_AT_A_TIME, 1, 1)  # [5, G, 1]
        best = math.inf
        for _ in range(_STEPS // _STEPS_AT_A_TIME):
            for step, error in enumerate(self._advance(kept)):
                if not error < best:
                    return kept[step].clone()
                best = error
        return kept[-1].clone()

    def encode(self, zero: Tensor, codes: Tensor) -> None:
        """Write the codes [G, S] that belong to zeros."""
        for block, inverse_scale, z, out in self._zip(zero, codes):
            out.copy_((_scaled(block, inverse_scale).add_(z)).round_().clamp_(0, self.last_code))

    def _advance(self, kept: Tensor) -> list[float]:
        """Put the zeros after the next steps into `kept`, and return the errors before them.

        The last of `kept` is where they start. An error is the mean over all weights, rounded to
        float32. It is the sum of integers: multiples of 2**-places, with room for every weight.
        """
        count = sum(block.numel() for block in self.blocks)
        _, exponent = math.frexp(count * _MAX_ERROR * (1 + 2 * self.largest))
        places = 62 - exponent
        totals = torch.zeros(len(kept), dtype=torch.int64, device=kept.device)
        for block, inverse_scale, zeros in self._zip(kept.transpose(0, 1)):
            start = zeros[:, -1]
            steps = _steps(block, inverse_scale, start, self.last_code)
            for step, (zero, error) in enumerate(steps):
                zeros[:, step] = zero
                totals[step] += (error.double() * 2.0**places).round_().long().sum()
        means = [math.ldexp(total / count, -places) for total in totals.tolist()]
        return torch.tensor(means, dtype=torch.float32).tolist()

    def _zip(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield every block, its inverse scales, and its part of further tensors [G, ...]."""
        cuts = list(accumulate(len(block) for block in self.blocks))[:-1]
        parts = (tensor.tensor_split(cuts) for tensor in (self.inverse_scale, *tensors))
        yield from zip(self.blocks, *parts, strict=True)


def _scaled(block: Tensor, inverse_scale: Tensor) -> Tensor:
    return block.float().contiguous() * inverse_scale  # [B, S]


def _steps(
    block: Tensor, inverse_scale: Tensor, zero: Tensor, last_code: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the zeros [B, 1] after each step, and before it the sums [B, 1] of errors."""
    scaled = _scaled(block, inverse_scale)
    target, left = torch.empty_like(scaled), torch.empty_like(scaled)
    reach = inverse_scale * _BETA ** (-1 / _POWER)
    for _ in range(_STEPS_AT_A_TIME):
        torch.add(scaled, zero, out=target)
        torch.clamp(target, 0, last_code, out=left).round_()
        torch.sub(target, left, out=left)
        size = torch.abs(left, out=target)
        error = _sums(size) / inverse_scale
        _shrink(left, size, reach)
        zero = zero - _sums(left) / left.shape[1]
        yield zero, error


def _shrink(left: Tensor, size: Tensor, reach: Tensor) -> None:
    """Give less weight to what lies beyond its group's reach [B, 1]."""
    if size.max() <= reach.min():  # waits for a GPU, which is still less than a power of each
        return
    (far,) = (size.amax(1) > reach[:, 0]).nonzero(as_tuple=True)
    left[far] = left[far] * _powers((size[far] / reach[far]).clamp_(min=1))


def _powers(values: Tensor) -> Tensor:
    """Return values**-1.3, the same for a value wherever it lies.

    torch's scalar and vector powers differ in the last bit. It takes scalars for what is left over
    when vectors, or threads, have divided a tensor: so there is nothing left, and one thread.
    """
    flat = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % _VECTORS), value=1.0)
    for start in range(0, len(flat), _PIECE):
        flat[start : start + _PIECE].pow_(-_POWER)
    return flat[: values.numel()].view_as(values)


def _sums(rows: Tensor) -> Tensor:
    """Return the sums of rows [B, 1], the same wherever a row lies."""
    # Threads share a row that is alone, and the order of its sum would depend on them.
    twice = rows.repeat(2, 1) if len(rows) == 1 else rows
    return twice.sum(1, keepdim=True)[: len(rows)]
