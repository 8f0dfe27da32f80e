"""The solver gives hqq's codes, scales and zeros, for any blocks and threads."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hqq.core.quantize import Quantizer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixoff.errors import ConfigError
from mixoff.quantization.hqq_solver import solve
from mixoff.quantization.packing import BITS
from support.tiers import diagonal, tiered

ROOT = Path(__file__).resolve().parents[2]
Solution = tuple[Tensor, Tensor, Tensor]


def normal(rows: int, columns: int, seed: int = 0, deviation: float = 0.02) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * deviation


def heavy_tailed(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Return weights whose largest are tens of times as large as the middle ones."""
    return normal(rows, columns, seed) / normal(rows, columns, seed + 1, 1.0).abs().clamp(min=0.02)


def hqq_solve(weight: Tensor, nbits: int, group_size: int, axis: int) -> Solution:
    codes, meta = Quantizer.quantize(
        weight.float(),
        nbits=nbits,
        group_size=group_size,
        axis=axis,
        round_zero=nbits == 4,
        bitpack=False,
        device="cpu",
    )
    return codes.to(torch.uint8), meta["scale"], meta["zero"]


def errors(weight: Tensor, solution: Solution) -> tuple[float, float]:
    """Return the mean and the root of the squared errors of a solution."""
    codes, scale, zero = solution
    error = ((codes.float() - zero) * scale).reshape(weight.shape) - weight.float()
    return error.abs().mean().item(), error.norm().item()


def share_of_other_codes(ours: Solution, theirs: Solution) -> float:
    return (ours[0] != theirs[0]).float().mean().item()


def assert_same(ours: Solution, expected: Solution) -> None:
    for part, expected_part in zip(ours, expected, strict=True):
        assert torch.equal(part, expected_part)


def assert_hqqs(weight: Tensor, nbits: int, group_size: int, axis: int) -> None:
    ours = solve(weight, nbits, group_size, axis=axis)
    theirs = hqq_solve(weight, nbits, group_size, axis)
    assert [part.shape for part in ours] == [part.shape for part in theirs]
    assert torch.equal(ours[1], theirs[1])
    assert share_of_other_codes(ours, theirs) <= 1e-3
    assert errors(weight, ours) == pytest.approx(errors(weight, theirs), rel=1e-3)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("group_size", [8, 16, 64, 24])
@pytest.mark.parametrize("nbits", BITS)
@pytest.mark.parametrize("make", [normal, heavy_tailed])
def test_codes_and_errors_are_those_of_hqq(make, nbits, group_size, axis):
    assert_hqqs(make(96, 384), nbits, group_size, axis)


@pytest.mark.parametrize("deviation", [1e-5, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("nbits", BITS)
def test_weights_of_any_size_get_hqqs_codes(nbits, deviation):
    assert_hqqs(normal(96, 384, deviation=deviation), nbits, 16, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("axis", [0, 1])
def test_every_type_of_weight_gets_the_codes_of_its_float32_values(dtype, axis):
    weight = normal(32, 128).to(dtype)
    assert_hqqs(weight, 3, 16, axis)
    assert_same(solve(weight, 3, 16, axis=axis), solve(weight.float(), 3, 16, axis=axis))


@given(
    nbits=st.sampled_from(BITS),
    group_size=st.sampled_from([1, 2, 7, 16]),
    groups=st.integers(1, 40),
    axis=st.sampled_from([0, 1]),
    seed=st.integers(0, 2**16),
)
def test_small_matrices_have_hqqs_scales_and_an_error_as_small(
    nbits, group_size, groups, axis, seed
):
    weight = normal(groups, group_size, seed)
    ours = solve(weight, nbits, group_size, axis=axis)
    theirs = hqq_solve(weight, nbits, group_size, axis)
    assert torch.equal(ours[1], theirs[1])
    # The number of steps for so few weights depends on the last bit of an error.
    step = ours[1].max().item()
    assert errors(weight, ours)[0] <= errors(weight, theirs)[0] * 1.001 + 0.05 * step


@pytest.mark.parametrize("constant", [0.0, 1e-8, 0.25, -3.0, 100.0])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("nbits", BITS)
def test_groups_of_one_value_get_hqqs_scale_and_keep_the_value(nbits, axis, constant):
    weight = normal(64, 64)
    groups = weight.view(-1, 16) if axis else weight.view(16, -1).T
    groups[5:9] = constant
    codes, scale, zero = solve(weight, nbits, 16, axis=axis)
    assert torch.equal(scale, hqq_solve(weight, nbits, 16, axis)[1])
    restored = ((codes.float() - zero) * scale).reshape(weight.shape)
    torch.testing.assert_close(restored[weight == constant], weight[weight == constant])


@pytest.mark.parametrize("group_size", [40_000, 20_000])
@pytest.mark.parametrize("nbits", BITS)
def test_a_group_may_be_a_whole_row_or_matrix(nbits, group_size):
    assert_hqqs(normal(1, 40_000), nbits, group_size, 1)
    assert_hqqs(normal(40_000, 1), nbits, group_size, 0)


DEVIATIONS = [0.02, 1.0]  # of the second, some residuals are so large that powers are taken


@pytest.mark.parametrize(
    ("nbits", "axis", "deviation", "block"),
    diagonal(BITS, [0, 1], DEVIATIONS, [1, 130, 777, 5_000]),
)
def test_blocks_change_nothing(nbits, axis, deviation, block):
    weight = normal(24, 500, deviation=deviation)
    whole = solve(weight, nbits, 10, axis=axis, block=weight.numel())
    assert_same(solve(weight, nbits, 10, axis=axis, block=block), whole)


@pytest.mark.parametrize(("deviation", "group_size"), diagonal(DEVIATIONS, [10, 48, 96_000]))
def test_threads_change_nothing(deviation, group_size):
    weight = normal(96, 1000, deviation=deviation)
    alone = solve(weight, 2, group_size, axis=1)
    try:
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            assert_same(solve(weight, 2, group_size, axis=1), alone)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("order", [1, -1])
def test_the_whole_matrix_decides_when_to_stop(order):
    early, late = normal(4, 64, seed=2), normal(128, 256)  # alone, early takes fewer steps
    matrix = torch.cat([part.view(-1, 16) for part in (early, late)[::order]])
    zero = solve(matrix, 3, 16, axis=1, block=256)[2]
    torch.testing.assert_close(zero, hqq_solve(matrix, 3, 16, 1)[2])
    zero_of_early = zero[:16] if order == 1 else zero[-16:]
    assert (zero_of_early - solve(early, 3, 16, axis=1)[2]).abs().max() > 0.1


@pytest.mark.parametrize("axis", [0, 1])
def test_the_matrix_is_not_changed(axis):
    weight = normal(32, 64)
    before = weight.clone()
    solve(weight, 2, 16, axis=axis)
    assert torch.equal(weight, before)


def test_a_parameter_and_a_transposed_matrix_give_the_same_codes():
    weight = normal(32, 64)
    expected = solve(weight, 2, 16, axis=1)
    assert_same(solve(torch.nn.Parameter(weight), 2, 16, axis=1), expected)
    assert_same(solve(weight.T.contiguous().T, 2, 16, axis=1), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_weights_without_a_finite_range_are_refused(value):
    weight = normal(8, 16)
    weight[3, 3], weight[3, 4] = value, -value
    with pytest.raises(ConfigError, match="a 8 x 16 matrix has weights that aren't finite"):
        solve(weight, 2, 16, axis=1)


def test_a_zero_beyond_float16_is_refused():
    weight = normal(8, 16, deviation=1e-3) + 1000
    with pytest.raises(ConfigError, match="too far from zero"):
        solve(weight, 8, 16, axis=1)


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's")
@pytest.mark.parametrize("rows", tiered([4096, 1024], fast=[1024]))
@pytest.mark.parametrize("axis", tiered([0, 1], fast=[1]))
def test_memory_beyond_input_and_output_stays_small(axis, rows):
    script = f"""
import resource, torch
from mixoff.quantization.hqq_solver import solve
torch.set_num_threads(1)
weight = torch.empty({rows}, 8192, dtype=torch.bfloat16)
for row in weight:
    row.normal_()
solve(weight[:64], 2, 16, axis={axis})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
solution = solve(weight, 2, 16, axis={axis})
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 - sum(part.nbytes for part in solution))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    groups = rows * 8192 // 16
    assert int(done.stdout) <= 10 * 4 * groups + 2**25  # ten float32 a group, and the blocks
