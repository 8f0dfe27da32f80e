"""A checkpoint's sizes are known before any of its weights are fetched."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixoff import plan_memory, preview_checkpoint
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.cli import app
from mixoff.config import OffloadConfig
from mixoff.errors import CheckpointError, ConfigError
from mixoff.planning.free_memory import FreeMemory
from mixoff.planning.plan import MemoryPlan
from support.hub_server import Hub
from support.tiny import EXACT, MIXED, random_mixtral

NAME = "somebody/model"
RELEASED = Path(__file__).parents[1] / "data" / "released-layout-tiny"
FIRST_BYTES = 1 << 16  # that are fetched of a file to have its header
FREE = FreeMemory(host=1 << 30, device=1 << 30)


def weights_sent(hub: Hub) -> dict[str, int]:
    return {name: sent for name, sent in hub.sent.items() if name.endswith(".safetensors")}


def planned(checkpoint) -> MemoryPlan:
    return plan_memory(checkpoint, OffloadConfig(), device="cuda", free=FREE)


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_checkpoint_on_the_hub_has_the_plan_of_the_downloaded_one(
    hub: Hub, quantized: Callable[..., Path]
) -> None:
    hub.add(NAME, quantized(MIXED))
    preview = preview_checkpoint(NAME)
    assert not weights_sent(hub)
    assert preview.stored == MIXED
    assert planned(preview.outline()) == planned(open_checkpoint(quantized(MIXED)))


def test_an_original_on_the_hub_has_the_plan_of_the_converted_one(
    hub: Hub, tiny_mixtral: Callable[..., Path], quantized: Callable[..., Path]
) -> None:
    hub.add(NAME, tiny_mixtral())
    preview = preview_checkpoint(NAME)
    assert not weights_sent(hub)
    assert preview.stored is None
    assert preview.fetched_nbytes == (tiny_mixtral() / "model.safetensors").stat().st_size
    for scheme in (MIXED, EXACT):
        assert planned(preview.outline(scheme)) == planned(open_checkpoint(quantized(scheme)))


def test_the_released_layout_is_previewed_from_the_headers_of_two_files(hub: Hub) -> None:
    hub.add(NAME, RELEASED)
    preview = preview_checkpoint(NAME)
    opened = open_checkpoint(RELEASED)
    assert len(weights_sent(hub)) == 2
    assert max(weights_sent(hub).values()) <= FIRST_BYTES
    assert preview.stored == opened.scheme
    estimate = preview.outline()
    assert (estimate.num_layers, estimate.num_experts) == (opened.num_layers, opened.num_experts)
    padded = estimate.num_layers * estimate.num_experts * (4096 + 21 * 64)  # our records' alignment
    assert 0 <= estimate.experts_nbytes - opened.experts_nbytes <= padded


@pytest.mark.parametrize("scheme", [MIXED, EXACT])
def test_a_folder_is_previewed_without_its_weights(
    quantized: Callable[..., Path], tmp_path: Path, scheme
) -> None:
    for name in ("config.json", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes((quantized(scheme) / name).read_bytes())
    assert planned(preview_checkpoint(tmp_path).outline()) == planned(
        open_checkpoint(quantized(scheme))
    )


def test_a_scheme_for_a_quantized_checkpoint_is_refused(quantized: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="is quantized already"):
        preview_checkpoint(quantized(MIXED)).outline(EXACT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized by 'gptq'"),
        ({"model_type": "llama"}, "model_type='llama'"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "code of its own"),
    ],
)
def test_an_unsupported_model_is_refused_by_name(tmp_path, settings, message) -> None:
    config = random_mixtral(experts=2).config.to_dict() | settings
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        preview_checkpoint(tmp_path)


def test_a_folder_without_settings_is_no_model(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        preview_checkpoint(tmp_path)


def test_the_command_prints_sizes_tiers_and_the_commit(
    hub: Hub, tiny_mixtral: Callable[..., Path]
) -> None:
    commit = hub.add(NAME, tiny_mixtral())
    text = printed(NAME, "--group-size", "16", "--device-memory", "8MiB", "--device", "cuda")
    assert f"{NAME}@{commit[:8]}" in text
    assert "of 8 experts in each layer" in text
    assert "It fits, once `mixoff quantize` has made" in text
    assert not weights_sent(hub)


def test_the_commands_json_has_the_plan_of_the_api(tiny_mixtral: Callable[..., Path]) -> None:
    arguments = ["--experts", "4", "--attention", "none", "--layer-experts", "1:8"]
    output = json.loads(printed(str(tiny_mixtral()), *arguments, "--group-size", "16", "--json"))
    assert output["checkpoint"]["attention"] == {"method": "none", "dtype": "float32"}
    assert output["checkpoint"]["experts"]["nbits"] == 4
    assert output["checkpoint"]["layer_experts"]["1"]["nbits"] == 8
    assert output["run"]["slots_per_layer"] == 4


def test_a_budget_that_cannot_be_met_is_refused_with_numbers(
    tiny_mixtral: Callable[..., Path],
) -> None:
    arguments = ["plan", str(tiny_mixtral()), "--group-size", "16", "--device-memory", "1KiB"]
    result = CliRunner().invoke(app, [*arguments, "--device", "cuda"])
    assert result.exit_code == 1
    assert "device_memory='1KiB'" in result.output
    assert "too much" in result.output


def test_a_preview_can_be_changed_to_another_models(quantized: Callable[..., Path]) -> None:
    preview = preview_checkpoint(quantized(MIXED))
    deeper = replace(preview, config={**preview.config, "num_hidden_layers": 4})
    assert deeper.outline().experts_nbytes == 2 * preview.outline().experts_nbytes
