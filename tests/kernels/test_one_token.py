"""Plans of several matrices and one token compute what float64 does step by step."""

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite", reason="kernels are compiled by it")

from mixoff.kernels.cpu import steps, threads
from mixoff.kernels.cpu.one_token import AttendedProduct, FeedForward, Projection
from mixoff.quantization import HQQ, QuantizedTensor
from support.instruction_sets import ISAS
from support.packed_matrices import location
from support.tiers import examples

DTYPES = (torch.float32, torch.bfloat16)
Sized = tuple[torch.Tensor, torch.Tensor]
SCHEMES = (HQQ(2, 16, 8), HQQ(3, 64), HQQ(4, 64), HQQ(8, 32), HQQ(4, 8))


def matrix_of(scheme: HQQ, rows: int, columns: int, seed: int) -> QuantizedTensor:
    """Return a matrix whose products with numbers of size 1 are of size 1, about."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) / math.sqrt(columns)
    return QuantizedTensor.quantize(weight, scheme)


def random_numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weights(matrices: list[QuantizedTensor]) -> torch.Tensor:
    return torch.cat([matrix.dequantize().double() for matrix in matrices])


def product(x: torch.Tensor, weight: torch.Tensor) -> Sized:
    """Return a product in float64, and that of absolute values."""
    return x.double() @ weight.T, x.double().abs() @ weight.abs().T


def is_close(computed: torch.Tensor, expected: Sized, error: float = 5e-5) -> bool:
    """Return whether errors are small beside the sizes of the terms that were added."""
    exact, size = expected
    return bool((computed - exact).abs().max() <= error * size.max())


# ---- experts


def expert(scheme: HQQ, columns: int, inner: int, pieces: int) -> list[QuantizedTensor]:
    """Return gate and up in one piece or two, and down."""
    above = [matrix_of(scheme, 2 * inner // pieces, columns, seed) for seed in range(pieces)]
    return [*above, matrix_of(scheme, columns, inner, 9)]


def forward(matrices: list[QuantizedTensor], x: torch.Tensor) -> Sized:
    *above, below = matrices
    (gate, up), (gate_size, up_size) = (
        part.chunk(2, dim=-1) for part in product(x, weights(above))
    )
    weight = below.dequantize().double()
    exact = (torch.nn.functional.silu(gate) * up) @ weight.T
    return exact, (gate_size * up_size) @ weight.abs().T


def plan_of(matrices: list[QuantizedTensor], dtype: torch.dtype, isa: str | None = None):
    *above, below = map(location, matrices)
    return FeedForward(above, below, dtype, isa)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=examples(25), deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    columns=st.integers(1, 9),
    inner=st.integers(1, 9),
    pieces=st.sampled_from((1, 2)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 9),
)
def test_an_expert_is_right(isa, scheme, columns, inner, pieces, dtype, seed):
    size = scheme.group_size
    matrices = expert(scheme, columns * size, inner * size, pieces)
    x = random_numbers(1, columns * size, seed=seed, dtype=dtype)
    assert is_close(plan_of(matrices, dtype, isa)(x), forward(matrices, x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [1e-20, 1.0, 30.0, 1e3])
def test_gates_may_be_tiny_or_closed(isa, size):
    matrices = expert(HQQ(4, 64), 192, 320, 1)
    x = random_numbers(1, 192, seed=0) * size
    exact, _ = forward(matrices, x)
    error = (plan_of(matrices, torch.float32, isa)(x) - exact).abs().max()
    assert error <= 1e-4 * exact.abs().max() + 1e-37


# ---- attention


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=examples(25), deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    columns=st.integers(1, 9),
    groups=st.integers(1, 3),
    share=st.integers(1, 4),
    size=st.sampled_from((32, 96, 128)),
    dtype=st.sampled_from(DTYPES),
)
def test_queries_keys_and_values_are_right(isa, scheme, columns, groups, share, size, dtype):
    columns *= scheme.group_size
    heads = (groups * share, groups, groups)
    matrices = [matrix_of(scheme, n * size, columns, seed) for seed, n in enumerate(heads)]
    x = random_numbers(1, columns, seed=0, dtype=dtype)
    angles = random_numbers(size, seed=1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    settings = {"size": size, "scaling": 0.3, "dtype": dtype, "isa": isa}
    project = Projection([*map(location, matrices)], **settings)
    projected = project(x, cos, sin)
    exact, sizes = product(x, weights(matrices))
    parts = exact.view(-1, size).split(heads)
    query, key = (rotated(part, cos.double(), sin.double()) for part in parts[:2])
    error = 1e-4 if dtype is torch.float32 else 5e-3  # keys and values are rounded
    assert [part.dtype for part in projected] == [torch.float32, dtype, dtype]
    assert is_close(projected[0] * (math.log(2) / 0.3), (query, sizes))
    assert is_close(projected[1], (key, sizes), error)
    assert is_close(projected[2], (parts[2], sizes), error)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=examples(25), deadline=None)
@given(
    scheme=st.sampled_from((HQQ(2, 16, 8), HQQ(3, 32), HQQ(4, 32), HQQ(8, 32))),
    rows=st.integers(1, 70),
    groups=st.integers(1, 3),
    share=st.integers(1, 5),
    size=st.sampled_from((32, 96, 128)),
    tokens=st.integers(1, 50),
    dtype=st.sampled_from(DTYPES),
)
def test_a_product_with_attention_is_right(isa, scheme, rows, groups, share, size, tokens, dtype):
    heads = groups * share
    matrix = matrix_of(scheme, rows, heads * size, 0)
    query = random_numbers(heads, size, seed=1)
    key, value = random_numbers(2, groups, tokens + 5, size, seed=2, dtype=dtype)[
        :, :, 2 : tokens + 2
    ]
    sizes = {"heads": heads, "groups": groups, "size": size, "dtype": dtype}
    y = AttendedProduct(location(matrix), **sizes, isa=isa)(query, key, value)
    by_group = query.double().view(groups, share, size)
    scores = by_group @ key.double().mT * math.log(2)
    attended = (scores.softmax(-1) @ value.double()).view(1, -1)
    assert is_close(y, product(attended, matrix.dequantize().double()))


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_torchs_default_type_and_device_have_no_effect(default):
    matrices = expert(HQQ(4, 64), 128, 192, 1)
    x = random_numbers(1, 128, seed=0)
    plan, expected = plan_of(matrices, torch.float32), forward(matrices, x)
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            y = plan(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert is_close(y, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 70, 191])
def test_nan_and_infinity_make_the_output_non_finite(bad, place):
    matrices = expert(HQQ(4, 64), 192, 128, 1)
    x = random_numbers(1, 192, seed=0)
    x[0, place] = bad
    assert not plan_of(matrices, torch.float32)(x).isfinite().any()


# ---- threads


@pytest.mark.parametrize("team", [True, False], ids=["OpenMP", "Python"])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_threads_never_change_a_bit(count, team, monkeypatch):
    monkeypatch.setattr(steps, "_LEAST_NBYTES", 1)
    monkeypatch.setattr(steps, "_LEAST_NUMBERS", 1)
    if not team:
        monkeypatch.setattr(threads, "_team", lambda process: None)
    matrices = expert(HQQ(2, 16, 8), 512, 768, 2)  # a plan doesn't keep them
    plan = plan_of(matrices, torch.bfloat16)
    x = random_numbers(1, 512, seed=0, dtype=torch.bfloat16)
    alone = plan(x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    for _ in range(20):
        assert torch.equal(plan(x), alone)


def test_threads_that_share_a_plan_get_results_of_their_own(monkeypatch):
    monkeypatch.setattr(steps, "_LEAST_NBYTES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    matrices = expert(HQQ(4, 64), 256, 384, 1)  # a plan doesn't keep them
    plan = plan_of(matrices, torch.float32)
    inputs = [random_numbers(1, 256, seed=seed) for seed in range(6)]
    alone = [plan(x) for x in inputs]
    wrong = []

    def run(number: int) -> None:
        for _ in range(40):
            if not torch.equal(plan(inputs[number]), alone[number]):
                wrong.append(number)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
