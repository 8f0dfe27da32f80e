"""The contract of every quantization method: what is in METHODS is tested here by itself."""

import json
import math

import pytest
import torch

from mixoff.kernels import TorchKernels
from mixoff.quantization import METHODS, Quantization, QuantizedTensor, quantization_from_dict
from mixoff.tiers.record import RecordLayout
from support.random_weights import weights

EXAMPLES: dict[str, tuple[dict[str, object], float]] = {  # settings, and the largest mean error
    "hqq": ({"nbits": 4, "group_size": 64}, 0.0025),
    "hqq-axis0": ({"nbits": 4, "group_size": 64}, 0.0025),
    "none": ({"dtype": "float32"}, 0.0),
}
SHAPE = (128, 192)


@pytest.fixture(params=METHODS)
def example(request: pytest.FixtureRequest) -> tuple[Quantization, float]:
    """Return a method with settings, and its largest mean error for weights of deviation 0.02."""
    settings, error = EXAMPLES[request.param]
    return METHODS[request.param](**settings), error


@pytest.fixture
def matrix(example: tuple[Quantization, float]) -> QuantizedTensor:
    return QuantizedTensor.quantize(weight(), example[0])


def weight() -> torch.Tensor:
    return weights(rows=SHAPE[0], columns=SHAPE[1])


def test_every_method_has_an_example() -> None:
    assert EXAMPLES.keys() == METHODS.keys()


def test_parts_are_those_that_were_specified(example, matrix) -> None:
    specs = example[0].part_specs(SHAPE)
    parts = {name: (part.dtype, tuple(part.shape)) for name, part in matrix.parts.items()}
    assert parts == specs
    assert [*parts] == [*specs], "in storage order"


def test_bits_a_weight_are_those_of_the_parts(example, matrix) -> None:
    bits = example[0].nbits_per_weight(SHAPE)
    assert bits == pytest.approx(8 * matrix.nbytes / math.prod(SHAPE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dequantized_weights_are_near_those_that_were_quantized(example, matrix, dtype) -> None:
    again = matrix.dequantize(dtype)
    assert (again.dtype, tuple(again.shape)) == (dtype, SHAPE)
    rounding = torch.finfo(dtype).eps * 0.02
    assert (again.float() - weight()).abs().mean() <= example[1] + rounding


def test_quantizing_again_gives_the_same_bytes(example, matrix) -> None:
    again = QuantizedTensor.quantize(weight(), example[0])
    assert all(torch.equal(part, again.parts[name]) for name, part in matrix.parts.items())


def test_settings_survive_json(example) -> None:
    settings = json.loads(json.dumps(example[0].to_dict()))
    assert quantization_from_dict(settings) == example[0]


def test_a_record_gives_back_the_parts_bit_by_bit(example, matrix) -> None:
    layout = RecordLayout(example[0], (("w", SHAPE),))
    again = layout.tensors(layout.pack({"w": matrix}))["w"]
    assert isinstance(again, QuantizedTensor)
    assert all(torch.equal(part, again.parts[name]) for name, part in matrix.parts.items())


def test_products_are_those_with_dequantized_weights(matrix) -> None:
    x = torch.randn(3, SHAPE[1], generator=torch.Generator().manual_seed(0))
    expected = x @ matrix.dequantize().T
    assert torch.allclose(TorchKernels().matmul(matrix, x), expected, atol=1e-4)
