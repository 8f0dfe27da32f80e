"""Products from packed weights agree with dequantizing, on every instruction set."""

import copy
import os
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from mixoff.kernels.cpu.threads import Code, Step, Work
from mixoff.kernels.layout import Form
from mixoff.kernels.plans import as_packed
from mixoff.quantization import HQQ, HQQAxis0, QuantizedTensor
from support.packed_matrices import of_codes_zero, packed, random_matrix
from support.tiers import diagonal, examples

pytest.importorskip("llvmlite", reason="kernels are compiled by it")

from mixoff.kernels.cpu import compile as compiling
from mixoff.kernels.cpu import operations as cpu
from mixoff.kernels.cpu import steps, threads
from support.instruction_sets import ISAS, isa_diagonal

NBITS = (8, 4, 3, 2)
GROUPS = (8, 16, 32, 64, 128, 4096)


def is_right(y: torch.Tensor, x: torch.Tensor, matrix: QuantizedTensor) -> bool:
    """Return whether errors are those of activations in 16 bits and of float32 sums."""
    weight, zeros = matrix.dequantize().double(), of_codes_zero(matrix).double()
    blocks = torch.nn.functional.pad(x.double().abs(), (0, -x.shape[1] % 64)).unflatten(1, (-1, 64))
    half_step = (blocks.amax(-1, keepdim=True) / 65278).expand_as(blocks).flatten(1)
    bound = half_step[:, : x.shape[1]] @ weight.abs().T
    bound += 2e-6 * x.double().abs() @ (weight.abs() + 2 * zeros.abs()).T + 1e-37
    return bool(((y.double() - x.double() @ weight.T).abs() <= bound).all())


@st.composite
def cases(draw):
    nbits, group = draw(st.sampled_from(NBITS)), draw(st.sampled_from(GROUPS))
    scheme = HQQ(nbits, group, draw(st.sampled_from((16, 8))))
    columns = group * draw(st.integers(1, max(1, 2600 // group)))
    rows, tokens = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    return random_matrix(scheme, rows, columns, draw(st.integers(0, 99))), tokens


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=examples(25))
@given(cases())
def test_products_from_packed_weights_are_right(isa, case):
    matrix, tokens = case
    x = torch.randn(tokens, matrix.shape[1], generator=torch.Generator().manual_seed(1))
    assert is_right(cpu.multiply(packed(matrix), x, isa=isa), x, matrix)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=examples(25))
@given(cases())
def test_dequantized_weights_are_those_of_torch_to_the_bit(isa, case):
    matrix, _ = case
    for dtype in (torch.float32, torch.bfloat16):
        weight = cpu.dequantize(packed(matrix), dtype, isa=isa)
        assert torch.equal(weight, matrix.dequantize(dtype))


@pytest.mark.parametrize(
    ("isa", "nbits", "dtype"), isa_diagonal(NBITS, [torch.float32, torch.bfloat16])
)
def test_many_tokens_are_multiplied_by_rows_that_are_dequantized_a_few_at_a_time(
    isa, nbits, dtype, monkeypatch
):
    monkeypatch.setattr(cpu, "scratch_nbytes", lambda _: 40_000)
    matrix = random_matrix(HQQ(nbits, 16, 8), 61, 336, nbits)
    x = torch.randn(33, 336).to(dtype)
    expected = x.double() @ matrix.dequantize().double().T
    y = cpu.multiply_dequantized(packed(matrix), x, isa=isa)
    assert y.dtype is dtype
    bound = 1e-5 if dtype is torch.float32 else 2e-2
    assert (y - expected).abs().max() <= bound * expected.abs().max()


def test_long_rows_are_dequantized_as_many_at_a_time_as_the_matrix_library_needs(monkeypatch):
    rows, linear = [], torch.nn.functional.linear

    def watched(x, weight):
        rows.append(len(weight))
        return linear(x, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    for columns in (256, 8192):
        matrix = random_matrix(HQQ(4, 64), 1100, columns, 0)
        cpu.multiply_dequantized(packed(matrix), torch.randn(2, columns))
    assert rows == [1104, 512, 512, 80]


def test_kernels_take_the_parts_of_a_matrix_and_for_its_copy_those_of_the_copy():
    matrix = random_matrix(HQQ(4, 64), 8, 64, 0)
    assert as_packed(matrix).codes is matrix.parts["W_q"]
    copied = copy.deepcopy(matrix)
    assert as_packed(copied).codes is copied.parts["W_q"]
    assert copied.parts["W_q"] is not matrix.parts["W_q"]


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_multiplied_in_float32_where_the_cpu_cannot(native, monkeypatch):
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: native)
    matrix, taken = random_matrix(HQQ(4, 64), 64, 256, 0), []
    linear = torch.nn.functional.linear

    def watched(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        taken.append((x.dtype, weight.dtype))
        return linear(x, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    y = cpu.multiply_dequantized(packed(matrix), torch.randn(20, 256).bfloat16())
    assert y.dtype is torch.bfloat16
    assert {*taken} == {(torch.bfloat16 if native else torch.float32,) * 2}
    assert cpu.most_tokens(torch.float32) == cpu.most_tokens(torch.float16)
    assert (cpu.most_tokens(torch.bfloat16) < cpu.most_tokens(torch.float32)) is native


@pytest.mark.parametrize(
    ("name", "scheme"),
    diagonal(["znver4", "znver5"], [HQQ(2, 16, 8), HQQ(3, 64), HQQAxis0(2, 16, 128)]),
    ids=str,
)
def test_what_is_prefetched_changes_no_result(monkeypatch, name, scheme):
    monkeypatch.setattr(compiling, "_cpu", lambda: name)
    for module, make in ((steps, "multiply_worker"), (cpu, "axis0_multiply_worker")):
        monkeypatch.setattr(module, make, getattr(module, make).__wrapped__)  # compiled anew
    matrix = QuantizedTensor.quantize(torch.randn(32, 2304), scheme)
    x = torch.randn(1, 2304)
    expected = x.double() @ matrix.dequantize().double().T
    y = cpu.multiply(as_packed(matrix), x)
    assert (y - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "nbits", "group", "tokens", "isa"),
    [
        ("znver4", 4, 64, 1, "avx-vnni"),
        ("znver4", 4, 64, 2, "avx512-vnni"),
        ("znver4", 4, 16, 1, "avx512-vnni"),
        ("znver4", 2, 64, 1, "avx512-vnni"),
        ("znver5", 4, 64, 1, "avx512-vnni"),
    ],
)
def test_vectors_are_as_wide_as_is_fastest(monkeypatch, name, nbits, group, tokens, isa):
    monkeypatch.setattr(compiling, "_cpu", lambda: name)
    monkeypatch.setattr(cpu, "usable_isas", lambda: ("avx512-vnni", "avx-vnni", "generic"))
    assert cpu.fastest_to_multiply(Form(nbits, group, False), tokens) == isa
    monkeypatch.setattr(cpu, "usable_isas", lambda: ("avx2", "generic"))
    assert cpu.fastest_to_multiply(Form(nbits, group, False), tokens) == "avx2"
    monkeypatch.setattr(cpu, "usable_isas", lambda: ("avx-vnni", "avx2", "generic"))
    assert cpu.fastest_to_multiply(Form(nbits, group, False), tokens) == "avx-vnni"
    assert cpu.fastest_to_multiply(Form(3, group, False), tokens) == "avx2"


@pytest.mark.parametrize("isa", ISAS)
def test_large_and_tiny_activations_in_one_token_keep_their_precision(isa):
    matrix = random_matrix(HQQ(4, 64), 16, 1024, 0)
    x = torch.randn(2, 1024)
    x[0, :64] *= 1e6
    x[0, 64:128] *= 1e-6
    x[1] = 0
    x[1, 5] = 1e-30
    y = cpu.multiply(packed(matrix), x, isa=isa)
    assert is_right(y, x, matrix)
    x[0, :64] = 0  # the tiny block by itself has its own step
    x[0, 128:] = 0
    assert is_right(cpu.multiply(packed(matrix), x, isa=isa), x, matrix)


@pytest.mark.parametrize("team", [True, False], ids=["OpenMP", "Python"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("isa", ISAS)
def test_threads_never_change_a_bit(isa, count, team, monkeypatch):
    monkeypatch.setattr(steps, "_LEAST_NBYTES", 1)
    if not team:
        monkeypatch.setattr(threads, "_team", lambda process: None)
    matrix = packed(random_matrix(HQQ(3, 64), 200, 512, 0))
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    alone = cpu.multiply(matrix, x, isa=isa)
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        assert torch.equal(cpu.multiply(matrix, x, isa=isa), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(steps, "_LEAST_NBYTES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # one alone would need no workers
    matrix = packed(random_matrix(HQQ(4, 64), 200, 512, 0))
    x = torch.randn(1, 512)
    expected = cpu.multiply(matrix, x)
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(cpu.multiply(matrix, x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_several_threads_at_once_get_their_own_products():
    matrices = [random_matrix(HQQ(2, 16, 8), 96, 768, seed) for seed in range(4)]
    wrong = []

    def work(number: int) -> None:
        for repetition in range(30):
            generator = torch.Generator().manual_seed(31 * number + repetition)
            x = torch.randn(2, 768, generator=generator)
            matrix = matrices[(number + repetition) % 4]
            if not is_right(cpu.multiply(packed(matrix), x), x, matrix):
                wrong.append((number, repetition))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize(("reserved_threads", "team"), [(0, [4]), (1, [3]), (3, []), (9, [])])
def test_reserved_threads_get_no_part(monkeypatch, reserved_threads, team):
    alone: list[int] = []
    teams: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(threads, "_team", lambda process: lambda *call: teams.append(call[2]))
    step = Step(0, [], count=12, least=1)
    Work([[step]], Code(alone.append, 0)).run(reserved_threads=reserved_threads)
    assert teams == team
    assert len(alone) == 1 - len(team)


@pytest.mark.parametrize(
    ("isa", "nbits", "bad"), isa_diagonal(NBITS, [torch.nan, torch.inf, -torch.inf])
)
def test_nan_and_infinity_make_all_results_of_their_token_non_finite(isa, nbits, bad):
    x = torch.randn(5, 300)
    x[1, 7] = x[2, 299] = bad
    matrix = random_matrix(HQQ(nbits, 8), 24, 304, nbits)
    y = cpu.multiply(packed(matrix), pad(x, (0, 4)), isa=isa)
    assert y.isfinite().all(dim=1).tolist() == [True, False, False, True, True]
    assert not y[1:3].isfinite().any()
