"""A checkpoint's card says what is known, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixoff._version import __version__
from mixoff.cli import app
from mixoff.hub import model_card
from mixoff.units import format_nbytes

NAME = "somebody/uploaded"


@pytest.fixture
def checkpoint(quantized: Callable[..., Path]) -> Path:
    return quantized()


def front_matter(card: str) -> dict[str, object]:
    import yaml

    _, head, _ = card.split("---\n", 2)
    entries = yaml.safe_load(head)
    assert isinstance(entries, dict)
    return entries


def test_a_cards_front_matter_names_library_base_model_and_licence(
    checkpoint: Path,
) -> None:
    card = model_card(checkpoint, base_model="somebody/base", license="mit")
    entries = front_matter(card)
    assert entries["library_name"] == "mixoff"
    assert entries["base_model"] == "somebody/base"
    assert entries["license"] == "mit"
    assert "mixoff" in entries["tags"]


def test_a_card_without_base_model_and_licence_names_none(checkpoint: Path) -> None:
    card = model_card(checkpoint)
    assert not {"base_model", "license"} & front_matter(card).keys()
    assert "isn't recorded" in card


def test_missing_measurements_appear_as_not_measured(checkpoint: Path) -> None:
    card = model_card(checkpoint, evaluation={"loss": 2.0})
    assert "| loss, nats/token | 2.0000 |" in card
    assert "| perplexity | not measured |" in card
    assert model_card(checkpoint).count("not measured") == 5


def test_a_card_has_the_sizes_that_info_prints(checkpoint: Path) -> None:
    result = CliRunner().invoke(app, ["info", str(checkpoint), "--json"])
    facts = json.loads(result.stdout)["checkpoint"]
    card = model_card(checkpoint)
    bits = facts["experts_bits_per_weight"]
    assert f"| experts, bits per weight with scales | {bits:.2f} |" in card
    for label, key in (
        ("one expert", "expert_nbytes"),
        ("all experts", "experts_nbytes"),
        ("the rest (not in experts)", "non_expert_nbytes"),
    ):
        assert f"| {label} | {format_nbytes(facts[key])} |" in card


def test_a_card_shows_commands_with_the_repositorys_name(checkpoint: Path) -> None:
    card = model_card(checkpoint, repository=NAME)
    assert f"mixoff chat --quantized-model-name {NAME}" in card
    assert f"mixoff {__version__}" in card


def test_text_in_a_name_cant_end_the_front_matter(checkpoint: Path) -> None:
    name = 'a/b"\n---\nlicense: mine'
    assert front_matter(model_card(checkpoint, base_model=name))["base_model"] == name
