"""Half-quadratic quantization: the codes, scales and zeros of a matrix, computed block by block.

Knows groups of weights; knows nothing of packing, nor of how scales and zeros are stored.

The method, its constants and its stopping rule are those of the package hqq (Badri and Shaji,
2023). Scales follow from the groups' ranges and stay fixed; each of up to 20 steps moves the zeros.
Let s be a group's inverse scale and z its zero, q = round(w s + z) clamped to the codes, and
r = w s + z - q, so that the error of a weight is r / s. hqq shrinks the error to
e = sign(r) max(0, |r / s| - |r / s|^-0.3 / beta), and its next zero is the group's mean of
q - (w - e) s. That is z - mean(r - s e), where r - s e = r min(1, (|r| / reach)^-1.3) with
reach = s / beta^(1/1.3): a mean of r in which values beyond `reach` have less weight. In trained
matrices almost no value is beyond it (|r| <= 1/2 unless q was clamped), so powers are computed in
those groups alone: for all values they would cost more than everything else.

hqq stops at the first step before which the mean |r / s| of the whole matrix, in float32, is not
below that of the step before. No block can decide this by itself. So all blocks advance five steps
and keep the zeros after each; then the errors of the whole matrix tell whether one of these steps
is the last, and if none is, the blocks advance again.

Results depend neither on blocks nor on threads: a sum over a group is computed within one row, and
the errors of groups are added up as integers, whose sum is the same in any order.

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
_NARROWEST, _MAX_INVERSE_SCALE = 1e-4, 2e4  # groups with a narrower range have a scale of 1
# Bound of a weight's error, in ranges of its group: zeros move away from the first ones by at most
# half a code in each of 20 steps.
_MAX_ERROR = 16
_MAX_ZERO = torch.finfo(torch.float16).max
_BLOCK = 1 << 19  # weights: three float32 tensors of this size stay in a CPU's cache
_GPU_BLOCK = 1 << 24
_VECTORS, _PIECE = 64, 1 << 14  # weights, see _powers


def solve(
    weight: Tensor, nbits: int, group_size: int, *, axis: int, block: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return uint8 codes, and float32 scales and zeros: W = (codes - zero) * scale.

    Parameters
    ----------
    weight
        An [N, K] matrix in a floating point type; it isn't changed.
    nbits
        Bits of a code.
    group_size
        Weights that share a scale and a zero.
    axis
        1: groups are the rows of `weight.reshape(-1, group_size)`: codes [G, S], scales and
        zeros [G, 1]. 0: they are the columns of `weight.reshape(group_size, -1)`: [S, G], [1, G].
    block
        Weights of a block. It changes memory and time, not the result.

    Raises
    ------
    ConfigError
        If a weight is non-finite, or float16 can't hold a zero of this matrix.
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
    """A matrix's groups in blocks, with their scales and first zeros."""

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
        """Return whether all weights, and the ranges of all groups, are finite."""
        return math.isfinite(self.largest) and bool((self.inverse_scale > 0).all())

    def solve(self) -> Tensor:
        """Return the zeros [G, 1] after hqq's last step."""
        zeros = self.first_zero.repeat(_STEPS_AT_A_TIME, 1, 1)  # [5, G, 1]
        best = math.inf
        for _ in range(_STEPS // _STEPS_AT_A_TIME):
            for step, error in enumerate(self._advance(zeros)):
                if not error < best:  # hqq takes the step whose error stopped it, too
                    return zeros[step].clone()
                best = error
        return zeros[-1].clone()

    def encode(self, zero: Tensor, codes: Tensor) -> None:
        """Write the codes [G, S] of all weights, given the zeros [G, 1]."""
        for block, inverse_scale, z, out in self._zip(zero, codes):
            out.copy_((_scaled(block, inverse_scale).add_(z)).round_().clamp_(0, self.last_code))

    def _advance(self, zeros: Tensor) -> list[float]:
        """Replace `zeros` [5, G, 1] by those after the next five steps; return the errors before.

        The last row is where the steps start. An error is the mean of all weights' errors, rounded
        to float32 as hqq's is.
        """
        count = sum(block.numel() for block in self.blocks)
        # Errors are summed as multiples of 2**-places: so small that rounding doesn't matter, and
        # so large that the sum of all stays below 2**62 and fits int64.
        _, exponent = math.frexp(count * _MAX_ERROR * (1 + 2 * self.largest))
        places = 62 - exponent
        totals = torch.zeros(len(zeros), dtype=torch.int64, device=zeros.device)
        for block, inverse_scale, rows in self._zip(zeros.transpose(0, 1)):
            steps = _steps(block, inverse_scale, rows[:, -1], self.last_code)
            for step, (zero, error) in enumerate(steps):
                rows[:, step] = zero
                totals[step] += (error.double() * 2.0**places).round_().long().sum()
        means = [math.ldexp(total / count, -places) for total in totals.tolist()]
        return torch.tensor(means, dtype=torch.float32).tolist()

    def _zip(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield each block, its inverse scales [B, 1], and its rows of further tensors [G, ...]."""
        cuts = list(accumulate(len(block) for block in self.blocks))[:-1]
        parts = (tensor.tensor_split(cuts) for tensor in (self.inverse_scale, *tensors))
        yield from zip(self.blocks, *parts, strict=True)


def _scaled(block: Tensor, inverse_scale: Tensor) -> Tensor:
    return block.float().contiguous() * inverse_scale  # [B, S]


def _steps(
    block: Tensor, inverse_scale: Tensor, zero: Tensor, last_code: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for each step, the zeros [B, 1] after it and the groups' errors [B, 1] before it."""
    scaled = _scaled(block, inverse_scale)
    # All steps use the same two tensors, so that those of a block stay in a CPU's cache.
    target, residual = torch.empty_like(scaled), torch.empty_like(scaled)
    reach = inverse_scale * _BETA ** (-1 / _POWER)
    for _ in range(_STEPS_AT_A_TIME):
        torch.add(scaled, zero, out=target)  # w s + z
        torch.clamp(target, 0, last_code, out=residual).round_()  # q
        torch.sub(target, residual, out=residual)  # r
        size = torch.abs(residual, out=target)
        error = _sums(size) / inverse_scale
        _shrink(residual, size, reach)
        zero = zero - _sums(residual) / residual.shape[1]
        yield zero, error


def _shrink(residual: Tensor, size: Tensor, reach: Tensor) -> None:
    """Replace each residual r [B, S] by r min(1, (|r| / reach)^-1.3), in place."""
    # The comparison synchronizes a GPU, which costs less than the powers of a whole block.
    if size.max() <= reach.min():
        return
    (far,) = (size.amax(1) > reach[:, 0]).nonzero(as_tuple=True)
    residual[far] = residual[far] * _powers((size[far] / reach[far]).clamp_(min=1))


def _powers(values: Tensor) -> Tensor:
    """Return values**-1.3, equal for equal values at any position.

    torch's scalar and vector powers differ in the last bit, and it computes the rest of a tensor
    (or of a thread's share) that doesn't fill a vector with scalars. So values are padded to whole
    vectors, and computed in pieces so small that torch doesn't divide them between threads.
    """
    flat = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % _VECTORS), value=1.0)
    for start in range(0, len(flat), _PIECE):
        flat[start : start + _PIECE].pow_(-_POWER)
    return flat[: values.numel()].view_as(values)


def _sums(rows: Tensor) -> Tensor:
    """Return the sums of rows [B, 1], equal for equal rows at any position."""
    # Of a single row torch gives each thread a part, and the order of additions depends on their
    # number. Of several rows, each is summed by one thread.
    several = rows.repeat(2, 1) if len(rows) == 1 else rows
    return several.sum(1, keepdim=True)[: len(rows)]
