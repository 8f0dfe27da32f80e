"""One token of bfloat16 goes without oneDNN, and leaves the process as it was."""

import threading

import pytest
import torch
from torch import nn

from mixoff.models.build import build_model
from mixoff.models.layers.head import HeadWithoutOneDNN
from support.tiny import EXACT, MIXED

ONE, MANY = torch.zeros(1, 1, 8).bfloat16(), torch.zeros(1, 2, 8).bfloat16()


@pytest.fixture(autouse=True)
def _onednn():
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = True
    yield
    torch.backends.mkldnn.enabled = before


@pytest.fixture
def module(monkeypatch):
    """Return a head that tells whether oneDNN was on while it was called."""

    def tell(self: nn.Linear, x: torch.Tensor) -> bool:
        do = self.__dict__.get("do", lambda: None)
        do()
        return torch.backends.mkldnn.enabled

    monkeypatch.setattr(nn.Linear, "forward", tell)
    return HeadWithoutOneDNN(8, 8)


@pytest.mark.parametrize(
    ("x", "on"),
    [(ONE, False), (ONE[0, 0], False), (MANY, True), (ONE.float(), True), (ONE.to("meta"), True)],
)
def test_only_one_token_of_bfloat16_on_a_cpu_goes_without(module, x, on):
    assert module(x) is on
    assert torch.backends.mkldnn.enabled


def test_the_switch_can_be_turned_off(module):
    module.without_onednn = False
    assert module(ONE) is True


def test_what_was_off_stays_off(module):
    torch.backends.mkldnn.enabled = False
    assert not module(ONE)
    assert not torch.backends.mkldnn.enabled


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt])
def test_failures_and_interrupts_turn_it_on_again(module, failure):
    def fail() -> None:
        raise failure

    module.do = fail
    with pytest.raises(failure):
        module(ONE)
    assert torch.backends.mkldnn.enabled


def test_the_last_thread_to_end_turns_it_on_again(module):
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        go_on.wait(60)

    waiting = HeadWithoutOneDNN(8, 8)
    waiting.do = wait
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
def test_a_models_head_goes_without_where_kernels_compute(quantized, kernels, scheme, without):
    if kernels == "cpu":
        pytest.importorskip("llvmlite", reason="kernels are compiled by it")
    model, cache = build_model(quantized(scheme), kernels=kernels)
    cache.close()
    assert isinstance(model.lm_head, nn.Linear)
    assert isinstance(model.lm_head, HeadWithoutOneDNN) is without
