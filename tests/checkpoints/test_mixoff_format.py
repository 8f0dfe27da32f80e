"""A checkpoint on disk is whole and one of ours, or it is refused before it is used."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from mixoff.checkpoints.folder import INDEX_NAME
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.checkpoints.mixoff_format import (
    NON_EXPERT_FILE,
    MixoffCheckpoint,
    layer_file,
)
from mixoff.checkpoints.quantization_config import quantization_settings, scheme_from_settings
from mixoff.errors import CheckpointError, ConfigError
from mixoff.quantization import HQQ, Scheme
from mixoff.tiers.aligned import PAGE
from mixoff.tiers.buffers import Buffer
from mixoff.tiers.disk import DiskReader
from mixoff.tiers.store import RecordStore
from support.damage import changed, each_flip, each_truncation, swapped
from support.tiny import EXACT, MIXED

SMALL = {
    "experts": 1,
    "top_k": 1,
    "dtype": torch.bfloat16,
    "vocab_size": 8,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}

# Settings that the files' records don't depend on: building the model finds a change of some of
# them, by the non-expert parameters' shapes, and nobody can tell that others changed.
FREE_SETTINGS = {
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "initializer_range",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_key_value_heads",
    "output_router_logits",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "sliding_window",
    "tie_word_embeddings",
    "transformers_version",
    "use_cache",
    "vocab_size",
}


@pytest.fixture
def folder(quantized: Callable[..., Path], tmp_path: Path) -> Path:
    """Return a checkpoint of two layers and two experts, free to be damaged."""
    return copied(quantized(experts=2), tmp_path)


@pytest.fixture
def small(quantized: Callable[..., Path], tmp_path: Path) -> Path:
    """Return the smallest checkpoint there is, free to be damaged."""
    return copied(quantized(**SMALL), tmp_path)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "checkpoint"))


def read_experts(checkpoint: MixoffCheckpoint) -> None:
    locations = checkpoint.expert_locations()
    store = RecordStore(locations, DiskReader("buffered"))
    buffer = Buffer.for_records(checkpoint.expert_layouts()[0][0].stride)
    for layer in range(len(locations)):
        for expert in range(len(locations[layer])):
            assert [*store.read(layer, expert, buffer)]
    store.close()


def non_expert_nbytes(checkpoint: MixoffCheckpoint) -> int:
    return sum(tensor.nbytes for tensor in checkpoint.non_expert.values())


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_scheme(folder: Path, **changes: Any) -> None:
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit(folder / "config.json", quantization_config=settings | changes)


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_a_checkpoint_tells_what_it_holds(folder):
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.num_layers, checkpoint.num_experts) == (2, 2)
    assert checkpoint.scheme == MIXED


def test_every_record_begins_on_a_page(folder):
    locations = open_checkpoint(folder).expert_locations()
    assert all(location.offset % PAGE == 0 for layer in locations for location in layer)


def test_a_whole_checkpoint_passes_every_check(folder):
    checkpoint = open_checkpoint(str(folder))
    checkpoint.verify()
    read_experts(checkpoint)


def test_a_folder_of_links_is_read_as_the_hubs_cache_has_them(folder, tmp_path):
    (tmp_path / "links").mkdir()
    for path in folder.iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    read_experts(open_checkpoint(tmp_path / "links"))


def test_non_expert_bytes_are_the_files_less_headers_and_experts(folder):
    checkpoint = open_checkpoint(folder)
    data = sum(path.stat().st_size - PAGE for path in shard_files(folder))
    assert non_expert_nbytes(checkpoint) == data - 2 * 2 * checkpoint.expert_layouts()[0][0].stride


def test_opening_reads_no_tensor(folder):
    for path in shard_files(folder):
        content = path.read_bytes()
        path.write_bytes(content[:PAGE] + bytes(len(content) - PAGE))
    open_checkpoint(folder)


def test_every_flipped_bit_of_a_record_is_found_when_it_is_read(small):
    checkpoint = open_checkpoint(small)
    (location,) = checkpoint.expert_locations()[0]
    store = RecordStore([[location]], DiskReader("buffered"))
    buffer = Buffer.for_records(location.nbytes)
    for _ in each_flip(location.file, range(location.offset, location.offset + location.nbytes)):
        with pytest.raises(CheckpointError, match="expert 0 of layer 0 is damaged"):
            [*store.read(0, 0, buffer)]


def test_every_flipped_bit_of_the_non_expert_parameters_is_found_before_it_is_used(small):
    checkpoint = open_checkpoint(small)
    for _ in each_flip_of_the_non_expert_file(checkpoint):
        with pytest.raises(CheckpointError, match="is damaged"):
            checkpoint.verify()


def each_flip_of_the_non_expert_file(checkpoint: MixoffCheckpoint) -> Iterator[int]:
    for shard in checkpoint.shards.values():
        for name in shard.tensors.keys() & checkpoint.non_expert:
            start = shard.tensors[name].offset
            yield from each_flip(shard.path, range(start, start + shard.tensors[name].nbytes))


def test_records_and_non_expert_parameters_are_all_that_follows_the_headers(small):
    checkpoint = open_checkpoint(small)
    covered = non_expert_nbytes(checkpoint) + checkpoint.expert_layouts()[0][0].stride
    assert covered == sum(path.stat().st_size - PAGE for path in shard_files(small))


def test_a_flipped_bit_of_any_byte_of_a_header_is_found_when_a_checkpoint_is_opened(small):
    # test_shards flips all bits of a header and tries all lengths; here it is some of each byte.
    for path in shard_files(small):
        text = path.read_bytes().index(b"}}") + 2
        padding = range(text, PAGE, 16)
        for position in chain(each_flip(path, range(text), 2), each_flip(path, padding, 1)):
            assert not is_opened(small), f"byte {position} of {path.name}"


def test_a_truncation_is_found_when_a_checkpoint_is_opened(small):
    for path in [*shard_files(small), small / "config.json", small / INDEX_NAME]:
        whole = len(path.read_bytes().rstrip(b"\n"))
        for length in each_truncation(path, step=7):
            assert length >= whole or not is_opened(small), f"{path.name} of {length} bytes"


def is_opened(folder: Path) -> bool:
    try:
        open_checkpoint(folder)
    except CheckpointError:
        return False
    return True


def test_a_flipped_bit_of_the_index_is_found_or_changes_nothing(small):
    before = open_checkpoint(small)
    for position in each_flip(small / INDEX_NAME):
        try:
            after = open_checkpoint(small)
        except CheckpointError:
            continue
        assert after == before, position


def test_a_flipped_bit_of_the_settings_is_found_or_in_what_the_files_cannot_tell(
    quantized, tmp_path
):
    # of sizes whose records differ by more than a page, as those of every real model do
    folder = copied(quantized(**SMALL | {"hidden_size": 64, "intermediate_size": 96}), tmp_path)
    before = json.loads((folder / "config.json").read_text())
    for position in each_flip(folder / "config.json", bits=3):
        if is_opened(folder):
            after = open_checkpoint(folder)
            unlike = {name for name in before if after.config.get(name) != before[name]}
            assert unlike <= {*FREE_SETTINGS, "quantization_config"}, position
            assert after.scheme.experts == MIXED.experts, position


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_hidden_layers", 1),
        ("num_hidden_layers", 3),
        ("num_hidden_layers", 10**12),
        ("num_hidden_layers", None),
        ("num_hidden_layers", "two"),
        ("num_local_experts", 1),
        ("num_local_experts", 4),
        ("num_local_experts", float("inf")),
        ("hidden_size", 128),
        ("intermediate_size", 192),
        ("intermediate_size", 0),
        ("intermediate_size", -96),
        ("intermediate_size", []),
    ],
)
def test_settings_of_another_model_are_refused(folder, setting, value):
    edit(folder / "config.json", **{setting: value})
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(folder)


def test_layer_files_that_changed_places_are_refused(folder):
    with (
        swapped(folder / layer_file(0), folder / layer_file(1)),
        pytest.raises(CheckpointError, match="of another checkpoint"),
    ):
        open_checkpoint(folder)


def test_a_layer_file_of_another_model_of_the_same_shapes_is_refused(folder, quantized):
    other = quantized(experts=2, seed=1) / layer_file(1)
    with (
        changed(folder / layer_file(1), other.read_bytes()),
        pytest.raises(
            CheckpointError, match=r"layer-00001\.safetensors: its header is damaged or of"
        ),
    ):
        open_checkpoint(folder)


def test_records_that_changed_places_inside_a_file_are_refused(folder):
    one, other = open_checkpoint(folder).expert_locations()[0]
    content = one.file.read_bytes()
    head, tail = content[: one.offset], content[other.offset + other.nbytes :]
    records = content[one.offset : other.offset], content[other.offset :][: other.nbytes]
    one.file.write_bytes(head + records[1] + records[0] + tail)
    with pytest.raises(CheckpointError, match="expert 0 of layer 0 is damaged"):
        read_experts(open_checkpoint(folder))


@pytest.mark.parametrize("name", [NON_EXPERT_FILE, layer_file(0), INDEX_NAME, "config.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: can't be read \(No such file"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "file",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "deep/inside.safetensors",
        "..",
        "",
        ["layer-00000.safetensors"],
    ],
)
def test_an_index_that_names_a_file_elsewhere_is_refused(folder, file):
    weight_map = json.loads((folder / INDEX_NAME).read_text())["weight_map"]
    edit(folder / INDEX_NAME, weight_map=weight_map | {"lm_head.weight": file})
    with pytest.raises(CheckpointError, match=r"index\.json: .* is no file of this checkpoint"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", ".", "..", ""])
def test_a_checksum_of_a_file_elsewhere_is_refused(folder, name):
    metadata = json.loads((folder / INDEX_NAME).read_text())["metadata"]
    metadata["header_crc32"] = {name: "00000000"} | metadata["header_crc32"]
    edit(folder / INDEX_NAME, metadata=metadata)
    with pytest.raises(CheckpointError, match=f"'{name}' is no safetensors file of this folder"):
        open_checkpoint(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such files")
@pytest.mark.parametrize("name", ["config.json", INDEX_NAME, NON_EXPERT_FILE, layer_file(0)])
def test_a_pipe_in_place_of_a_file_is_refused_without_waiting_for_it(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=f"{name}: is no file"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "changes", [{"weight_map": None}, {"weight_map": []}, {"metadata": None}, {"metadata": [1]}]
)
def test_an_index_without_files_is_refused(folder, changes):
    edit(folder / INDEX_NAME, **changes)
    with pytest.raises(CheckpointError, match=r"index\.json: lists no files"):
        open_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"nothing"])
@pytest.mark.parametrize("name", ["config.json", INDEX_NAME])
def test_a_settings_file_that_holds_no_object_is_refused(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: (no JSON|holds no JSON object)"):
        open_checkpoint(folder)


def test_a_settings_file_of_100_megabytes_is_refused_unread(folder):
    with (folder / "config.json").open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(CheckpointError, match="100000000 bytes are too many"):
        open_checkpoint(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="absent: no such folder"):
        open_checkpoint(tmp_path / "absent")


def test_a_file_is_no_folder(folder):
    with pytest.raises(CheckpointError, match="no such folder"):
        open_checkpoint(folder / NON_EXPERT_FILE)


def test_an_unquantized_model_is_told_apart_and_how_to_convert_it(tiny_mixtral):
    with pytest.raises(CheckpointError, match=r"has no quantization.*mixoff\.quantize_checkpoint"):
        open_checkpoint(tiny_mixtral(experts=2))


def test_another_quantization_is_named(folder):
    edit(folder / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="its quantization is 'gptq'"):
        open_checkpoint(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_of_the_format_is_refused_with_what_this_one_reads(folder, version):
    edit_scheme(folder, format_version=version)
    with pytest.raises(CheckpointError, match=rf"version {version!r}: this mixoff reads version 1"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ({"method": "gptq"}, "quantization method 'gptq': this mixoff knows hqq, hqq-axis0, none"),
        ({"method": "hqq", "nbits": 5}, "nbits=5: give one of"),
        ({"method": "hqq", "axis": 0}, "unexpected keyword argument 'axis'"),
        ("hqq", "quantization 'hqq': give a method"),
        (None, "quantization None: give a method"),
        (
            {"method": "hqq", "nbits": 3, "group_size": 16, "scale_nbits": 8},
            "config.json's settings",
        ),
        ({"method": "hqq", "nbits": 2, "group_size": 7, "scale_nbits": 8}, "does not divide"),
    ],
)
def test_a_scheme_that_is_unknown_or_not_the_files_is_refused(folder, experts, message):
    edit_scheme(folder, experts=experts)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_a_scheme_without_attention_is_refused():
    settings = quantization_settings(MIXED)
    del settings["attention"]
    with pytest.raises(ConfigError, match="lacks attention"):
        scheme_from_settings(settings)


@pytest.mark.parametrize("scheme", [MIXED, EXACT, Scheme(), Scheme(HQQ(8, 128), HQQ(3, 64))])
def test_a_scheme_comes_back_from_its_settings(scheme):
    written = json.loads(json.dumps(quantization_settings(scheme)))
    assert scheme_from_settings(written) == scheme


def test_packed_experts_have_the_name_of_the_weights_that_they_replace(folder):
    checkpoint = open_checkpoint(folder)
    names = checkpoint.shards[layer_file(1)].tensors
    assert checkpoint.architecture.experts_tensor(1) == "model.layers.1.mlp.experts.gate_up_proj"
    assert "model.layers.1.mlp.experts.gate_up_proj" in names
