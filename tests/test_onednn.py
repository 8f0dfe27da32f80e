"""One token of bfloat16 goes without oneDNN, and leaves the process as it was."""

import threading

import pytest
import torch
from tiny import EXACT, MIXED
from torch import nn

from mixoff.builder import build_model
from mixoff.onednn import OneTokenWithout, use_torch_for_one_token

ONE, MANY = torch.zeros(1, 1, 8).bfloat16(), torch.zeros(1, 2, 8).bfloat16()


class Telling(nn.Module):
    """Tells whether oneDNN was on while it was called."""

    def forward(self, x: torch.Tensor, failure: type | None = None) -> bool:
        if failure is not None:
            raise failure
        return torch.backends.mkldnn.enabled


class TellingWithout(OneTokenWithout, Telling):
    pass


@pytest.fixture(autouse=True)
def _onednn():
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = True
    yield
    torch.backends.mkldnn.enabled = before


@pytest.fixture
def module():
    return TellingWithout()


@pytest.mark.parametrize(
    ("x", "on"),
    [(ONE, False), (ONE[0, 0], False), (MANY, True), (ONE.float(), True), (ONE.to("meta"), True)],
)
def test_only_one_token_of_bfloat16_on_a_cpu_goes_without(module, x, on):
    assert module(x) is on
    assert torch.backends.mkldnn.enabled


def test_what_was_off_stays_off(module):
    torch.backends.mkldnn.enabled = False
    assert not module(ONE)
    assert not torch.backends.mkldnn.enabled


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt])
def test_failures_and_interrupts_turn_it_on_again(module, failure):
    with pytest.raises(failure):
        module(ONE, failure)
    assert torch.backends.mkldnn.enabled


def test_the_last_thread_to_end_turns_it_on_again(module):
    inside, go_on = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, x: torch.Tensor) -> None:
            inside.set()
            go_on.wait(60)

    class Waiting(OneTokenWithout, Waits):
        pass

    waiting = Waiting()
    other = threading.Thread(target=waiting, args=(ONE,))
    other.start()
    assert inside.wait(60)
    assert not module(ONE)
    assert not torch.backends.mkldnn.enabled
    go_on.set()
    other.join()
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize(
    ("kernels", "scheme", "without"),
    [("cpu", MIXED, True), ("cpu", EXACT, False), ("torch", MIXED, False)],
)
def test_head_and_routers_go_without_where_kernels_compute(quantized, kernels, scheme, without):
    if kernels == "cpu":
        pytest.importorskip("llvmlite", reason="kernels are compiled by it")
    model, cache = build_model(quantized(scheme), kernels=kernels)
    cache.close()
    routers = [block.mlp.gate for block in model.model.layers]
    for module in (model.lm_head, *routers):
        assert isinstance(module, OneTokenWithout) is without


def test_a_linear_layer_is_one_still_and_others_are_left_alone():
    linear, other = nn.Linear(8, 3).bfloat16(), Telling()
    expected = linear(ONE)
    for _ in range(2):
        for module in (linear, other):
            use_torch_for_one_token(module)
    assert isinstance(linear, nn.Linear)
    assert type(linear).__mro__.count(OneTokenWithout) == 1
    assert torch.allclose(linear(ONE), expected)
    assert type(other) is Telling
