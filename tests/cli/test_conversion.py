"""The quantize command makes checkpoints with the given scheme."""

import json
from pathlib import Path
from typing import Any

from support.command_line import chat_output, invoke

RELEASED_LAYOUT = Path(__file__).parents[1] / "data" / "released-layout-tiny"


def test_quantize_makes_a_checkpoint_that_chat_reads(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "small"
    bits = ("--attention", 8, "--experts", 2)
    result = invoke("quantize", source, target, *bits, "--attention-group-size", 32)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(str(target))
    scheme = json.loads((target / "config.json").read_text())["quantization_config"]
    hqq = {"method": "hqq", "nbits": 2, "group_size": 16, "scale_nbits": 8}
    assert scheme["experts"] == hqq
    assert scheme["attention"] == hqq | {"nbits": 8, "group_size": 32, "scale_nbits": 16}
    assert "hits " in chat_output(target, "--prompt", "Hello!")


def test_quantize_to_none_keeps_the_weights_type(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "same"
    invoke("quantize", source, target, "--attention", "none", "--experts", "none")
    scheme = json.loads((target / "config.json").read_text())["quantization_config"]
    assert scheme["attention"] == {"method": "none", "dtype": "float32"}


def quantization_settings(target: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((target / "config.json").read_text())
    return settings["quantization_config"]


def test_quantize_stores_single_layers_in_bits_of_their_own(source: Path, tmp_path: Path) -> None:
    layers = ("--layer-experts", "0:4,1:none", "--group-size", 32)
    result = invoke("quantize", source, tmp_path / "model", *layers)
    assert result.exit_code == 0, result.stderr
    settings = quantization_settings(tmp_path / "model")
    four = {"method": "hqq", "nbits": 4, "group_size": 32, "scale_nbits": 16}
    assert settings["layer_experts"] == {"0": four, "1": {"method": "none", "dtype": "float32"}}
    assert (settings["attention"]["group_size"], settings["experts"]["group_size"]) == (32, 32)


def test_quantize_prints_size_disk_and_memory_before_it_starts(
    source: Path, tmp_path: Path
) -> None:
    result = invoke("quantize", source, tmp_path / "model")
    for words in (str(source), "bits a weight", "are free there", "memory: about"):
        assert words in result.stderr


def test_quantize_without_bits_keeps_the_codes_of_the_released_layout(tmp_path: Path) -> None:
    invoke("quantize", RELEASED_LAYOUT, tmp_path / "model")
    assert quantization_settings(tmp_path / "model")["experts"]["method"] == "hqq-axis0"
