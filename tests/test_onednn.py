"""Calls with one token go without oneDNN, and leave the process as it was."""

import threading

import pytest
import torch
from torch import nn

from mixoff.onednn import use_torch_for_one_token


class Model(nn.Module):
    """Tells whether oneDNN was on while it was called."""

    def forward(self, input_ids: torch.Tensor, failure: type | None = None) -> bool:
        if failure is not None:
            raise failure
        return torch.backends.mkldnn.enabled


@pytest.fixture
def model():
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = True
    model = Model()
    use_torch_for_one_token(model)
    yield model
    torch.backends.mkldnn.enabled = before


ONE, MANY = torch.tensor([[1]]), torch.tensor([[1, 2]])


def test_one_token_goes_without_and_many_with(model):
    assert not model(ONE)
    assert not model(input_ids=ONE)
    assert model(MANY)
    assert model(torch.tensor([[1], [2]]))
    assert torch.backends.mkldnn.enabled


def test_what_was_off_stays_off(model):
    torch.backends.mkldnn.enabled = False
    assert not model(ONE)
    assert not torch.backends.mkldnn.enabled


def test_a_failure_turns_it_on_again(model):
    with pytest.raises(ZeroDivisionError):
        model(ONE, ZeroDivisionError)
    assert torch.backends.mkldnn.enabled


def test_after_an_interrupt_many_tokens_go_with_it(model):
    with pytest.raises(KeyboardInterrupt):
        model(ONE, KeyboardInterrupt)
    assert model(MANY)


def test_the_last_thread_to_end_turns_it_on_again(model):
    inside, go_on = threading.Event(), threading.Event()

    class Waiting(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> None:
            inside.set()
            go_on.wait(60)

    waiting = Waiting()
    use_torch_for_one_token(waiting)
    other = threading.Thread(target=waiting, args=(ONE,))
    other.start()
    inside.wait(60)
    assert not model(ONE)
    assert not torch.backends.mkldnn.enabled
    go_on.set()
    other.join()
    assert torch.backends.mkldnn.enabled
