"""Triton's kernels agree with dequantizing: on a GPU, or in Triton's interpreter."""

import copy
import logging
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixoff import OffloadConfig, build_model, demo_path
from mixoff.errors import ConfigError
from mixoff.kernels import KERNELS, TorchKernels, host_kernels, kernels_named
from mixoff.kernels.packed import PackedKernels
from mixoff.kernels.plans import as_packed
from mixoff.quantization import HQQ, HQQAxis0, QuantizedTensor, StackedRows, Unquantized
from support.packed_matrices import of_codes_zero
from support.tiers import diagonal, examples, tiered

pytest.importorskip("triton", reason="kernels are compiled by it, and it is on Linux alone")

from mixoff.kernels.triton import operations as cuda

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PRECISION = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")


def random_matrix(scheme: HQQ, rows: int, columns: int, seed: int = 0) -> QuantizedTensor:
    """Return a matrix of any codes, scales and zeros, also such as no solver returns."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name, (dtype, shape) in scheme.part_specs((rows, columns)).items():
        if dtype is torch.uint8:
            part = torch.randint(256, shape, dtype=dtype, generator=generator)
        else:
            part = (torch.randn(shape, generator=generator) / 64).to(dtype)
        if name == "zero" and dtype is torch.float16:
            part *= 2**scheme.nbits * 8
        parts[name] = part.to(DEVICE)
    return QuantizedTensor(scheme, (rows, columns), parts)


def random_inputs(tokens: int, columns: int, dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).to(DEVICE)


def is_right(y: torch.Tensor, x: torch.Tensor, matrix: QuantizedTensor) -> bool:
    """Return whether errors are those of float32 sums, and of the type of the result."""
    weight, zeros = matrix.dequantize().double(), of_codes_zero(matrix).double()
    expected = x.double() @ weight.T
    bound = 2e-6 * x.double().abs() @ (weight.abs() + 2 * zeros.abs()).T + 1e-7
    bound += PRECISION[y.dtype] * (expected.abs() + bound)
    return bool(((y.double() - expected).abs() <= bound).all())


@st.composite
def cases(draw):
    """Draw a matrix, a type, and how many programs suffice: if one does, it has many rows."""
    nbits, group = draw(st.sampled_from((8, 4, 3, 2))), draw(st.sampled_from((8, 16, 64, 128)))
    scheme = HQQ(nbits, group, draw(st.sampled_from((16, 8))))
    columns = group * draw(st.integers(1, max(1, 640 // group)))
    matrix = random_matrix(scheme, draw(st.integers(1, 20)), columns, draw(st.integers(0, 99)))
    return matrix, draw(st.sampled_from(DTYPES)), draw(st.sampled_from((1, 8)))


@settings(max_examples=examples(12))
@given(cases(), st.integers(1, 9))
def test_products_from_packed_weights_are_right(case, tokens):
    matrix, dtype, programs = case
    x = random_inputs(tokens, matrix.shape[1], dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_PROGRAMS", programs)
        y = cuda.multiply(as_packed(matrix), x)
    assert (y.shape, y.dtype, y.device) == ((tokens, matrix.shape[0]), dtype, x.device)
    assert is_right(y, x, matrix)


@settings(max_examples=examples(12))
@given(cases())
def test_dequantized_weights_are_those_of_torch_to_the_bit(case):
    matrix, dtype, _ = case
    assert torch.equal(cuda.dequantize(as_packed(matrix), dtype), matrix.dequantize(dtype))


@pytest.mark.parametrize("nbits", tiered((8, 4, 3, 2), {8, 3}))
def test_many_columns_take_several_rounds_and_several_pairs(nbits, monkeypatch):
    monkeypatch.setattr(cuda, "_PROGRAMS", 1)
    matrix = random_matrix(HQQ(nbits, 16, 8), 9, 2080)  # 130 groups
    x = random_inputs(2, 2080, torch.float16)
    assert is_right(cuda.multiply(as_packed(matrix), x), x, matrix)
    assert torch.equal(
        cuda.dequantize(as_packed(matrix), torch.float16), matrix.dequantize(x.dtype)
    )


@pytest.mark.parametrize("nbits", tiered((8, 4, 3, 2), {4, 2}))
def test_many_tokens_are_multiplied_by_rows_that_are_dequantized_some_at_a_time(nbits, monkeypatch):
    monkeypatch.setattr(cuda, "_SCRATCH_NBYTES", 20_000)
    matrix = random_matrix(HQQ(nbits, 16, 8), 61, 144)
    x = random_inputs(33, 144, torch.float32)
    y = cuda.multiply_dequantized(as_packed(matrix), x)
    assert torch.allclose(y, x @ matrix.dequantize().T, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter's numpy
def test_nan_and_infinity_make_results_in_bfloat16_non_finite():
    matrix = random_matrix(HQQ(8, 8), 8, 8)
    x = random_inputs(2, 8, torch.bfloat16)
    x[0, 0], x[1, 0] = torch.nan, torch.inf
    y = cuda.multiply(as_packed(matrix), x)
    assert not y.isfinite().any()
    assert y[0].isnan().all()


def test_inputs_that_start_anywhere_are_read_where_they_are():
    matrix = random_matrix(HQQ(4, 16), 8, 32)
    x = random_inputs(1, 66, torch.float16)[:, 1:33]
    assert is_right(cuda.multiply(as_packed(matrix), x), x, matrix)


# ---- on a GPU alone

MIXTRAL = [(14336, 4096), (4096, 14336), (1024, 4096)]  # gate or up, down, keys or values


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("scheme", [HQQ(2, 16, 8), HQQ(3, 64), HQQ(4, 64), HQQ(8, 128)], ids=str)
@pytest.mark.parametrize("shape", MIXTRAL, ids=str)
def test_at_real_widths_values_are_right_and_the_same_each_time(scheme, shape):
    matrix = random_matrix(scheme, *shape)
    for tokens, dtype in zip((1, 3, 16), DTYPES, strict=True):
        x = random_inputs(tokens, shape[1], dtype)
        y = cuda.multiply(as_packed(matrix), x)
        assert is_right(y, x, matrix)
        assert torch.equal(cuda.multiply(as_packed(matrix), x), y)
        assert torch.equal(cuda.dequantize(as_packed(matrix), dtype), matrix.dequantize(dtype))
    many = random_inputs(100, shape[1], torch.float16)
    y = cuda.multiply_dequantized(as_packed(matrix), many)
    expected = torch.nn.functional.linear(many, matrix.dequantize(torch.float16))
    assert torch.allclose(y, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("tokens", [2, 40])
def test_work_on_two_streams_keeps_to_its_own(tokens):
    matrices = [random_matrix(HQQ(nbits, 16, 8), 2048, 2048, nbits) for nbits in (2, 4)]
    kernels = kernels_named("triton", "cuda")
    inputs = [random_inputs(tokens, 2048, torch.float16, seed) for seed in range(2)]
    alone = [kernels.matmul(*pair) for pair in zip(matrices, inputs, strict=True)]
    streams = [torch.cuda.Stream() for _ in matrices]
    torch.cuda.synchronize()
    results = []
    for _ in range(20):
        for stream, matrix, x in zip(streams, matrices, inputs, strict=True):
            with torch.cuda.stream(stream):
                results.append(kernels.matmul(matrix, x.clone()))  # made on that stream
    torch.cuda.synchronize()
    for number, y in enumerate(results):
        assert torch.equal(y, alone[number % 2])


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_demo_model_answers_as_with_torch(dtype):
    offload = OffloadConfig(offload_per_layer=4)
    ids = torch.arange(3, 40, device="cuda")[None]
    logits = {}
    for name in ("torch", "triton"):
        model, cache = build_model(demo_path(), offload, device="cuda", dtype=dtype, kernels=name)
        with torch.inference_mode():
            at_once = model(ids).logits  # many tokens for some experts, few for others
            last = model(ids[:, :1]).logits  # one token
        logits[name] = torch.cat([at_once, last], dim=1).float()
        cache.close()
    spread = logits["torch"].std()
    tolerance = {torch.float32: 1e-3, torch.float16: 0.1}[dtype]
    assert (logits["triton"] - logits["torch"]).abs().max() < tolerance * spread


# ---- which kernels are used


@pytest.mark.parametrize(
    ("scheme", "shape"),
    diagonal(
        [HQQ(2, 16, 8), HQQ(4, 24), HQQAxis0(2, 16), Unquantized("float32")],
        [(1, 3, 48), (48,), (1, 40, 48), (0, 48)],
    ),
    ids=str,
)
def test_any_weights_and_inputs_are_multiplied(scheme, shape, monkeypatch):
    monkeypatch.setattr(cuda, "_PROGRAMS", 1)
    kernels = kernels_named("triton", DEVICE)
    matrix = QuantizedTensor.quantize(torch.randn(128, 48), scheme)
    parts = {name: part.to(DEVICE) for name, part in matrix.parts.items()}
    matrix = QuantizedTensor(scheme, matrix.shape, parts)
    x = torch.randn(shape, device=DEVICE)
    y = kernels.matmul(matrix, x)
    assert (y.shape, y.dtype) == ((*shape[:-1], 128), x.dtype)
    expected = torch.nn.functional.linear(x.double(), matrix.dequantize().double())
    assert torch.allclose(y.double(), expected, atol=1e-3, rtol=0)


def test_rows_in_several_pieces_are_one_matrix():
    pieces = tuple(random_matrix(HQQ(4, 16), rows, 64, rows) for rows in (12, 3))
    x = random_inputs(3, 64, torch.float32)
    y = kernels_named("triton", DEVICE).matmul(StackedRows(pieces), x)
    weight = torch.cat([piece.dequantize() for piece in pieces])
    assert torch.allclose(y, x @ weight.T, rtol=1e-3, atol=1e-3)


def test_kernels_are_copied_with_their_model():
    assert isinstance(copy.deepcopy(kernels_named("triton", DEVICE)), PackedKernels)


def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that kernels are compiled for a GPU of today, whether there is one or not."""
    monkeypatch.setattr(cuda, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.parametrize("name", KERNELS)
def test_host_kernels_run_on_the_cpu_whatever_kernels_the_gpu_has(name, monkeypatch):
    compiled(monkeypatch)  # nothing of Triton's runs on a CPU then
    kernels = host_kernels(name)
    assert isinstance(kernels, TorchKernels) is (name == "torch")
    on_device = random_matrix(HQQ(4, 64), 8, 64)
    parts = {name: part.cpu() for name, part in on_device.parts.items()}
    matrix = QuantizedTensor(on_device.quantization, on_device.shape, parts)
    assert kernels.matmul(matrix, torch.randn(1, 64)).shape == (1, 8)


def test_a_gpu_has_tritons_kernels(monkeypatch):
    compiled(monkeypatch)
    monkeypatch.setattr(cuda, "failure", lambda device: None)
    for name in ("auto", "triton"):
        kernels = kernels_named(name, "cuda")
        assert isinstance(kernels, PackedKernels)
    assert isinstance(kernels_named("torch", "cuda"), TorchKernels)


def test_a_gpus_kernels_multiply_tensors_in_host_memory_by_torch(monkeypatch):
    compiled(monkeypatch)
    monkeypatch.setattr(cuda, "failure", lambda device: None)
    matrix = QuantizedTensor.quantize(torch.randn(16, 48), HQQ(4, 16))
    x = torch.randn(2, 48)
    y = kernels_named("triton", "cuda").matmul(matrix, x)
    assert torch.equal(y, torch.nn.functional.linear(x, matrix.dequantize()))


def missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mixoff.kernels.triton.operations", None)


def old(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))


def broken(monkeypatch):
    monkeypatch.setattr(cuda, "failure", lambda device: "no C compiler")


@pytest.mark.parametrize(
    ("damage", "reason", "remedy"),
    [
        (missing, r"triton can't be imported \(.*\)", r"pip install mixoff\[triton\]"),
        (old, r"Triton can't be used on cuda:0 \(compute capability 6.1 is below 7.0\)", "torch"),
        (broken, r"Triton can't be used on cuda:0 \(no C compiler\)", "give kernels='torch'"),
    ],
)
def test_where_triton_cannot_be_used_torch_multiplies_and_the_log_has_the_reason(
    monkeypatch, caplog, damage, reason, remedy
):
    compiled(monkeypatch)
    damage(monkeypatch)
    with caplog.at_level(logging.INFO):
        assert isinstance(kernels_named("auto", "cuda:0"), TorchKernels)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().endswith(": plain torch multiplies.")
    with pytest.raises(ConfigError, match=f"kernels='triton': {reason}: .*{remedy}"):
        kernels_named("triton", "cuda:0")


def test_on_a_cpu_triton_is_refused_without_its_interpreter(monkeypatch):
    monkeypatch.setattr(cuda, "interpreted", lambda: False)
    with pytest.raises(ConfigError, match="run on GPUs, not on cpu: give device='cuda'"):
        kernels_named("triton", "cpu")


def test_a_product_that_fails_or_is_wrong_is_noticed_before_a_model_runs(monkeypatch):
    assert cuda.failure(DEVICE) is None
    monkeypatch.setattr(cuda, "multiply", lambda matrix, x: x)
    assert cuda.failure(DEVICE) == "a product came out wrong"

    def no_compiler(matrix, x):
        raise RuntimeError("Failed to find C compiler.\nPlease set CC.")

    monkeypatch.setattr(cuda, "multiply", no_compiler)
    assert cuda.failure(DEVICE) == "Failed to find C compiler. Please set CC."
