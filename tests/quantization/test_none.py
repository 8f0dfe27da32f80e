"""Unquantized matrices are stored as they are."""

import pytest
import torch

from mixoff.errors import ConfigError
from mixoff.quantization import QuantizedTensor, Unquantized
from support.random_weights import weights


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_unquantized_matrix_of_the_same_type_stays_bit_for_bit(dtype):
    weight = weights().to(getattr(torch, dtype))
    quantized = QuantizedTensor.quantize(weight, Unquantized(dtype))
    assert torch.equal(quantized.dequantize(weight.dtype), weight)


def test_an_unknown_type_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match=r"dtype='float64': give float32, float16 or bfloat16"):
        Unquantized("float64")
