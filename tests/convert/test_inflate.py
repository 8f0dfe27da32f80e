"""An inflated checkpoint is heavier and says the same."""

from pathlib import Path

import pytest
import torch

from mixoff import OffloadConfig, build_model, quantize_checkpoint
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.convert import inflate_checkpoint
from mixoff.errors import CheckpointError, ConfigError
from support.tiny import MIXED, random_mixtral

IDS = torch.tensor([[*b"a fox and a hen"]])
INNER = 96  # of the tiny model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inflation")
    random_mixtral().save_pretrained(folder / "original")
    return quantize_checkpoint(folder / "original", folder / "source", MIXED, progress=False)


def logits(folder: Path) -> torch.Tensor:
    model, _ = build_model(folder, OffloadConfig(offload_per_layer=4), kernels="torch")
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def test_experts_that_keep_their_size_give_the_same_logits_bit_by_bit(source, tmp_path):
    same = inflate_checkpoint(source, tmp_path / "same", intermediate_size=INNER)
    assert torch.equal(logits(same), logits(source))


def test_larger_experts_change_logits_by_no_more_than_rounding(source, tmp_path):
    larger = inflate_checkpoint(source, tmp_path / "larger", intermediate_size=1024)
    torch.testing.assert_close(logits(larger), logits(source), rtol=0, atol=2e-5)


def test_a_record_weighs_what_was_promised(source, tmp_path):
    larger = inflate_checkpoint(source, tmp_path / "larger", intermediate_size=1024)
    checkpoint = open_checkpoint(larger)
    hidden = checkpoint.config["hidden_size"]
    assert {place.nbytes for layer in checkpoint.expert_locations() for place in layer} == {
        12 * hidden * 1024
    }


def test_what_was_appended_are_no_zeros_that_a_disk_might_compress(source, tmp_path):
    larger = inflate_checkpoint(source, tmp_path / "larger", intermediate_size=2 * INNER)
    checkpoint = open_checkpoint(larger)
    record = checkpoint.shards["layer-00000.safetensors"].read(
        "model.layers.0.mlp.experts.gate_up_proj", 3
    )
    gate_up = checkpoint.expert_layouts()[0][3].tensors(record)["gate_up_proj"].dequantize()
    assert int((gate_up == 0).sum()) == 0


def test_the_same_seed_makes_the_same_bytes(source, tmp_path):
    for name in ("first", "second"):
        inflate_checkpoint(source, tmp_path / name, intermediate_size=2 * INNER, seed=3)
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def test_a_target_that_is_there_is_left_alone(source, tmp_path):
    with pytest.raises(ConfigError, match="exists already"):
        inflate_checkpoint(source, tmp_path, intermediate_size=INNER)


def test_experts_never_shrink(source, tmp_path):
    with pytest.raises(ConfigError, match="the source has 96"):
        inflate_checkpoint(source, tmp_path / "smaller", intermediate_size=INNER - 1)


def test_what_fails_leaves_nothing_behind(source, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in source.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "tokenizer.json").mkdir()  # no file to copy, and so passed over
    shard = broken / "layer-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4096])
    with pytest.raises(CheckpointError):
        inflate_checkpoint(broken, tmp_path / "target", intermediate_size=INNER)
    assert not (tmp_path / "target").exists()
