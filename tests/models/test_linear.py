"""A packed linear layer multiplies by the record that it has now."""

import copy

import pytest
import torch
from torch import nn

from mixoff.models.layers.linear import QuantizedLinear
from mixoff.quantization import HQQ, QuantizedTensor
from mixoff.tiers.record import RecordLayout

SCHEME = HQQ(4, 64)


def record_of(weight: torch.Tensor) -> torch.Tensor:
    matrix = QuantizedTensor.quantize(weight, SCHEME)
    return layout().pack({"weight": matrix})


def layout() -> RecordLayout:
    return RecordLayout(SCHEME, (("weight", (8, 64)),))


@pytest.fixture
def layer() -> QuantizedLinear:
    made = QuantizedLinear(nn.Linear(64, 8, bias=False), layout())
    made.weight.data.copy_(record_of(torch.ones(8, 64)))
    return made


X = torch.ones(1, 64)


def test_a_layer_multiplies_by_its_record(layer):
    assert torch.allclose(layer(X), torch.full((1, 8), 64.0))


def test_a_record_that_is_filled_again_in_place_is_the_new_matrix(layer):
    layer(X)
    layer.weight.data.copy_(record_of(torch.full((8, 64), 2.0)))
    assert torch.allclose(layer(X), torch.full((1, 8), 128.0))


def test_a_record_that_is_put_in_place_of_another_is_the_new_matrix(layer):
    layer(X)
    layer.weight.data = record_of(torch.full((8, 64), 2.0))
    assert torch.allclose(layer(X), torch.full((1, 8), 128.0))
    layer.weight = nn.Parameter(record_of(torch.full((8, 64), 3.0)), requires_grad=False)
    assert torch.allclose(layer(X), torch.full((1, 8), 192.0))


def test_a_copied_layer_has_a_record_of_its_own(layer):
    layer(X)
    copied = copy.deepcopy(layer)
    layer.weight.data.zero_()
    assert torch.allclose(copied(X), torch.full((1, 8), 64.0))
