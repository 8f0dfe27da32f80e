"""Draws follow temperature and nucleus; settings out of range are refused."""

import math

import pytest
import torch

from mixoff.chat.chat import Chat
from mixoff.chat.sampling import Sampling
from mixoff.errors import ConfigError, MixoffError
from support.chats import byte_level_tokenizer, tiny_model


def test_draws_follow_the_probabilities_of_the_nucleus():
    logits = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]).log()
    generator = torch.Generator().manual_seed(0)
    draws = [Sampling(1.0, 0.8).draw(logits, generator) for _ in range(1500)]
    share = torch.tensor(draws).bincount(minlength=5) / len(draws)
    expected = torch.tensor([0.0, 0.4, 0.0, 0.25, 0.2]) / 0.85
    assert share[0] == share[2] == 0
    assert torch.allclose(share, expected, atol=0.04)


def test_temperature_sharpens_draws_and_zero_takes_the_most_probable_token():
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    generator = torch.Generator().manual_seed(0)
    cold = [Sampling(0.5, 1.0).draw(logits, generator) for _ in range(1000)]
    assert abs(cold.count(1) / 1000 - 0.25 / 0.38) < 0.05
    assert {Sampling(0, 0.9).draw(logits, generator) for _ in range(50)} == {1}
    assert {Sampling(1e-9, 1.0).draw(logits, generator) for _ in range(50)} == {1}
    assert {Sampling(1.0, 1e-9).draw(logits, generator) for _ in range(50)} == {1}


def test_non_finite_logits_raise_instead_of_giving_a_token():
    with pytest.raises(MixoffError, match="nan"):
        Sampling(0, 1.0).draw(torch.tensor([0.0, math.nan]), torch.Generator())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.5),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_and_value(name, value):
    tokenizer = byte_level_tokenizer()
    with pytest.raises(ConfigError, match=rf"^{name}={value}: .*give"):
        Chat(tiny_model(tokenizer), tokenizer, **{name: value})
