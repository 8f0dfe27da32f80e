"""The eval command prints a checkpoint's loss, and its divergence from the original."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.command_line import invoke, refusal

OFFLOAD = ("--offload-per-layer", "2")


def test_eval_prints_the_loss_with_four_decimals(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hello! Who are you? " * 4)
    words = ("eval", checkpoint, "--text", text, "--offload-per-layer", 2)
    facts = json.loads(invoke(*words, "--json").stdout)
    assert f"loss {facts['loss']:.4f} nats/token" in invoke(*words).stdout


def test_eval_against_the_original_prints_the_divergence_and_both_losses(
    source: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hello! Who are you? " * 4)
    invoke("quantize", source, tmp_path / "small", "--experts", 2, "--attention", 4)
    words = ("eval", tmp_path / "small", "--text", text, *OFFLOAD, "--tokens", 20)
    result = invoke(*words, "--against", source, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert facts["tokens"] == 20
    assert facts["kl_mean"] > 0
    assert facts["reference_nbytes"] > 0
    alone = json.loads(invoke(*words, "--json").stdout)
    assert facts["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    lines = invoke(*words, "--against", source).stdout.splitlines()
    assert lines[0].startswith(f"loss {facts['loss']:.4f} nats/token")
    assert lines[1].startswith(f"against {source}, loss {facts['unquantized_loss']:.4f}")
    assert f"KL divergence {facts['kl_mean']:.5f} nats/token" in lines[1]


def test_eval_against_the_original_of_an_exact_copy_finds_no_divergence(
    checkpoint: Path, source: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hello! Who are you? " * 4)
    words = ("eval", checkpoint, "--text", text, *OFFLOAD, "--against", source)
    assert "same most likely token 100.0 %" in invoke(*words).stdout


def test_eval_of_one_token_has_an_unknown_standard_error(
    checkpoint: Path, source: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hello!")
    words = ("eval", checkpoint, "--text", text, *OFFLOAD, "--tokens", 1)
    against = ("--against", source)
    assert json.loads(invoke(*words, *against, "--json").stdout)["kl_standard_error"] is None
    assert "standard error unknown" in invoke(*words, *against).stdout


def test_eval_against_another_model_is_refused_by_its_sizes(
    checkpoint: Path, tiny_mixtral: Callable[..., Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hello! Who are you? " * 4)
    unrelated = tiny_mixtral(experts=2)
    words = ("eval", checkpoint, "--text", text, *OFFLOAD, "--against", unrelated)
    line = refusal(invoke(*words))
    assert str(unrelated) in line
    assert "num_local_experts is 2 there and 4 here" in line
