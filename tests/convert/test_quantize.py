"""A Mixtral of any form on disk becomes the same checkpoint, or no target appears."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixoff.checkpoints.folder import INDEX_NAME
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.checkpoints.mixoff_format import NON_EXPERT_FILE, layer_file
from mixoff.checkpoints.safetensors_read import read_shard
from mixoff.checkpoints.source_files import FolderFiles
from mixoff.convert import Conversion, quantize_checkpoint
from mixoff.convert.conversion import RUNNING
from mixoff.errors import CheckpointError, ConfigError
from mixoff.quantization import HQQ, QuantizedTensor, Scheme, Unquantized
from support.tiny import EXACT, MIXED, random_mixtral, stack_experts

HALF = Scheme(attention=Unquantized("float16"), experts=Unquantized("float16"))
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.fixture
def source(tiny_mixtral: Callable[..., Path], tmp_path: Path) -> Path:
    """Return a Mixtral of two layers and two experts, free to be changed."""
    return Path(shutil.copytree(tiny_mixtral(experts=2), tmp_path / "source"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return a folder that isn't there yet, in one that is and is empty."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "model"


def convert(source: Path, target: Path, scheme: Scheme = EXACT) -> dict[str, bytes]:
    """Convert and return the bytes of every file."""
    quantize_checkpoint(source, target, scheme, progress=False)
    return contents(target)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left_behind(target: Path) -> list[Path]:
    return [*target.parent.iterdir()]


def partial(target: Path) -> Path:
    return target.parent / f".{target.name}.partial"


def change_tensor(source: Path, name: str, tensor: Tensor | None) -> None:
    """Replace a tensor; None removes it."""
    tensors = load_file(source / "model.safetensors") | {name: tensor}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, source / "model.safetensors")


def change_settings(source: Path, **changes: Any) -> None:
    settings = json.loads((source / "config.json").read_text()) | changes
    (source / "config.json").write_text(json.dumps(settings))


def expert_matrices(folder: Path, layer: int, expert: int) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(folder)
    records = checkpoint.shards[layer_file(layer)].read(
        f"model.layers.{layer}.mlp.experts.gate_up_proj", expert
    )
    tensors = checkpoint.expert_layouts()[0][0].tensors(records)
    return {name: tensor.dequantize() for name, tensor in tensors.items()}


def test_an_experts_record_holds_its_gate_over_its_up_and_its_down(source, target):
    convert(source, target)
    weights = random_mixtral(experts=2).model.layers[1].mlp.experts
    found = expert_matrices(target, layer=1, expert=1)
    assert torch.equal(found["gate_up_proj"], weights.gate_up_proj[1])
    assert torch.equal(found["down_proj"], weights.down_proj[1])


def test_a_quantized_expert_is_the_quantized_matrix(source, target):
    convert(source, target, MIXED)
    weight = random_mixtral(experts=2).model.layers[0].mlp.experts.down_proj[1]
    expected = QuantizedTensor.quantize(weight.detach(), MIXED.experts).dequantize()
    assert torch.equal(expert_matrices(target, layer=0, expert=1)["down_proj"], expected)


@pytest.mark.parametrize("scheme", [EXACT, MIXED])
def test_stacked_experts_become_the_same_files_as_experts_one_by_one(source, tmp_path, scheme):
    one_by_one = convert(source, tmp_path / "one by one", scheme)
    stack_experts(source)
    assert convert(source, tmp_path / "stacked", scheme) == one_by_one


def test_a_source_in_many_files_becomes_the_same_files_as_one_in_one(source, tmp_path):
    random_mixtral(experts=2).save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert (tmp_path / "many" / INDEX_NAME).exists()
    assert len([*(tmp_path / "many").glob("*.safetensors")]) > 5
    assert convert(tmp_path / "many", tmp_path / "a") == convert(source, tmp_path / "b")


def test_the_same_source_gives_the_same_bytes_again(source, tmp_path):
    assert convert(source, tmp_path / "a", MIXED) == convert(source, tmp_path / "b", MIXED)


@pytest.mark.parametrize("name", DTYPES)
def test_non_expert_parameters_keep_their_type(tiny_mixtral, target, name):
    convert(tiny_mixtral(experts=2, dtype=DTYPES[name]), target, HALF)
    found = read_shard(target / NON_EXPERT_FILE).tensors
    assert {entry.dtype for entry in found.values()} == {name}


@pytest.mark.parametrize("name", DTYPES)
def test_experts_of_any_type_are_converted_to_the_schemes(tiny_mixtral, target, name):
    convert(tiny_mixtral(experts=2, dtype=DTYPES[name]), target, HALF)
    weights = random_mixtral(experts=2, dtype=DTYPES[name]).model.layers[0].mlp.experts
    found = expert_matrices(target, layer=0, expert=0)["down_proj"]
    assert torch.equal(found, weights.down_proj[0].half().float())


def test_a_tied_head_is_stored_once(tiny_mixtral, target):
    convert(tiny_mixtral(experts=2, tie_word_embeddings=True), target)
    assert {*read_shard(target / NON_EXPERT_FILE).tensors} == {
        "model.embed_tokens.weight",
        "model.norm.weight",
    }


def test_settings_are_kept_and_say_how_it_is_quantized(source, target):
    convert(source, target, MIXED)
    before = json.loads((source / "config.json").read_text())
    after = json.loads((target / "config.json").read_text())
    assert after.pop("quantization_config")["experts"] == MIXED.experts.to_dict()
    assert after == before


def test_the_tokenizer_comes_along_and_code_and_pickles_do_not(source, target):
    for name in ("tokenizer.json", "chat_template.jinja", "modeling.py", "pytorch_model.bin"):
        (source / name).write_text("{}")
    names = {*convert(source, target)}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names
    assert names.isdisjoint({"modeling.py", "pytorch_model.bin", "model.safetensors"})


def test_tensors_that_no_mixtral_has_are_left_out(source, target):
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, source / "model.safetensors")
    convert(source, target)
    assert not [name for name in open_checkpoint(target).non_expert if "inv_freq" in name]


def test_the_default_scheme_is_4_bit_attention_and_2_bit_experts(tiny_mixtral, target):
    quantize_checkpoint(tiny_mixtral(experts=2), target, progress=False)
    assert open_checkpoint(target).scheme == Scheme(HQQ(4, 64), HQQ(2, 16, scale_nbits=8))


def test_folders_on_the_way_to_the_target_are_made(source, tmp_path):
    assert convert(source, tmp_path / "a" / "b" / "model")


def test_nothing_is_printed_without_progress(source, target, capfd):
    convert(source, target)
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_layer_by_layer(source, target, capfd):
    quantize_checkpoint(source, target, EXACT)
    assert "layer 2/2" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["folder", "file", "empty folder"])
def test_a_target_that_exists_is_refused_and_left_as_it_was(source, target, kind):
    target.touch() if kind == "file" else target.mkdir()
    if kind == "folder":
        (target / "mine").write_text("precious")
    with pytest.raises(ConfigError, match=r"model: exists already; give a new folder"):
        convert(source, target)
    assert left_behind(target) == [target]
    assert kind != "folder" or contents(target) == {"mine": b"precious"}


def test_a_missing_source_is_named(tmp_path, target):
    with pytest.raises(CheckpointError, match="absent: no such folder"):
        convert(tmp_path / "absent", target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, r"config\.json: model_type='llama'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "no unquantized Mixtral .*gptq"),
        ({"num_hidden_layers": None}, r"config\.json: num_hidden_layers=None"),
        ({"num_local_experts": "two"}, r"config\.json: num_local_experts='two'"),
        ({"hidden_size": -64}, r"config\.json: hidden_size=-64"),
        (
            {"hidden_size": 128},
            r"embed_tokens\.weight is F32 \(256, 64\); .* asks for \(256, 128\)",
        ),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\..* is missing: fetch"),
        ({"num_hidden_layers": 10**12}, r"num_hidden_layers=1000000000000: a Mixtral has"),
        ({"num_local_experts": 3}, r"mlp\.gate\.weight is F32 \(2, 64\)"),
        ({"intermediate_size": 48}, r"experts\.0\.w1\.weight is F32 \(96, 64\)"),
        ({"num_key_value_heads": 4}, r"k_proj\.weight is F32 \(32, 64\)"),
    ],
)
def test_settings_that_are_not_the_tensors_are_refused(source, target, changes, message):
    change_settings(source, **changes)
    with pytest.raises(CheckpointError, match=message):
        convert(source, target)
    assert not left_behind(target)


W1 = "model.layers.1.block_sparse_moe.experts.1.w1.weight"


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.0.block_sparse_moe.gate.weight",
        W1,
    ],
)
def test_a_missing_tensor_is_named_and_nothing_is_left(source, target, name):
    change_tensor(source, name, None)
    with pytest.raises(CheckpointError, match=r"weight is missing: fetch the checkpoint again"):
        convert(source, target)
    assert not left_behind(target)


def test_a_missing_stacked_tensor_is_named(source, target):
    stack_experts(source)
    change_tensor(source, "model.layers.1.mlp.experts.down_proj", None)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.down_proj is missing"):
        convert(source, target)


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (torch.zeros(96, 64, dtype=torch.int8), r"I8 \(96, 64\)"),
        (torch.zeros(96, 64, dtype=torch.float8_e4m3fn), r"F8_E4M3 \(96, 64\)"),
        (torch.zeros(96, 64, dtype=torch.float64), r"F64 \(96, 64\)"),
        (torch.zeros(64, 96), r"F32 \(64, 96\)"),
        (torch.zeros(1), r"F32 \(1,\)"),
    ],
)
def test_a_tensor_of_another_type_or_shape_is_named_with_both(source, target, tensor, found):
    change_tensor(source, W1, tensor)
    with pytest.raises(CheckpointError, match=rf"1\.w1\.weight is {found}; .* \(96, 64\), unqu"):
        convert(source, target)
    assert not left_behind(target)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_and_what_was_done_is_left(source, target, value):
    weight = load_file(source / "model.safetensors")[W1]
    weight[3, 5] = value
    change_tensor(source, W1, weight)
    with pytest.raises(
        CheckpointError, match=r"source: layer 1's expert 1, gate_up_proj: .* aren't finite"
    ):
        convert(source, target, MIXED)
    assert left_behind(target) == [partial(target)]
    assert {*contents(partial(target) / "model")} == {NON_EXPERT_FILE, layer_file(0)}


@pytest.mark.parametrize("part", [0, 7, 100, 0.5, -1])
def test_a_source_that_is_cut_off_is_refused_and_nothing_is_left(source, target, part):
    content = (source / "model.safetensors").read_bytes()
    length = int(part * len(content)) if isinstance(part, float) else part
    (source / "model.safetensors").write_bytes(content[:length])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*cut off"):
        convert(source, target)
    assert not left_behind(target)


def test_a_source_with_a_damaged_header_is_refused(source, target):
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content.replace(b'"dtype"', b'"dtipe"', 1))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its header is damaged"):
        convert(source, target)


def test_a_missing_file_of_the_source_is_named(source, target):
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: can't be read \(No such"):
        convert(source, target)


@pytest.mark.parametrize(
    "weight_map", [{"a": "../a.safetensors"}, {"a": 1}, {"a": ["b"]}, {}, [], None]
)
def test_an_index_that_names_no_files_of_the_folder_is_refused(source, target, weight_map):
    (source / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(
        CheckpointError, match=r"lists no files|is no safetensors file of this folder"
    ):
        convert(source, target)


def test_a_scheme_that_does_not_suit_the_shapes_is_refused_and_nothing_is_left(source, tmp_path):
    target = tmp_path / "made" / "for" / "it"
    with pytest.raises(ConfigError, match="group_size=48 does not divide the 64 inputs"):
        convert(source, target, Scheme(HQQ(4, 16), HQQ(4, 48)))
    assert not (tmp_path / "made").exists()


@dataclass(frozen=True)
class Interrupted(Unquantized):
    """Stops as a person does who presses Ctrl-C."""

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        raise KeyboardInterrupt


def test_a_conversion_that_is_interrupted_keeps_the_files_that_are_finished(source, target):
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, Scheme(EXACT.attention, Interrupted()))
    assert left_behind(target) == [partial(target)]
    assert {*contents(partial(target) / "model")} == {NON_EXPERT_FILE}


def test_a_conversion_that_fails_before_its_first_file_leaves_nothing(source, target):
    tensor = torch.full((256, 64), torch.nan)
    change_tensor(source, "model.embed_tokens.weight", tensor)
    files = Truncating(source)
    with pytest.raises(CheckpointError, match="the file ends inside"):
        quantize_checkpoint(files, target, EXACT, progress=False)
    assert not left_behind(target)


class Truncating(FolderFiles):
    """Files that somebody cuts off after their headers were read."""

    def fetch(self, name: str) -> None:
        path = self.headers[name].path
        path.write_bytes(path.read_bytes()[:9000])


@dataclass(frozen=True)
class Overtaken(Unquantized):
    """Writes into a folder as another conversion would that was faster."""

    folder: Path = Path()

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "theirs").write_text("whole")
        return super().quantize(weight)

    def to_dict(self) -> dict[str, Any]:
        return EXACT.experts.to_dict()


def test_a_target_that_another_conversion_made_meanwhile_is_left_as_it_is(source, target):
    with pytest.raises(CheckpointError, match=r"model: can't be written \(Directory not empty\)"):
        convert(source, target, Scheme(EXACT.attention, Overtaken("float32", folder=target)))
    assert contents(target) == {"theirs": b"whole"}
    assert {*left_behind(target)} == {target, partial(target)}


def test_a_folder_that_cannot_be_made_is_named(source, target):
    target.parent.joinpath("file").touch()
    with pytest.raises(CheckpointError, match=r"model.*: can't be written \((File exists|Not a)"):
        convert(source, target.parent / "file" / "model")


def watch_memory() -> Callable[[], int]:
    """Return a function that tells how far memory rose above what it is now."""

    def memory(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = memory("VmRSS")
    return lambda: memory("VmHWM") - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_below_two_layers_of_ten(tmp_path, target):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 10}
    random_mixtral(dtype=torch.float16, **sizes).save_pretrained(tmp_path / "large")
    layer = (tmp_path / "large" / "model.safetensors").stat().st_size // 10
    rise = watch_memory()
    quantize_checkpoint(tmp_path / "large", target, HALF, progress=False)
    assert rise() < 2 * layer


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("experts", [HQQ(2, 16, 8), HQQ(8), Unquantized("float32")])
def test_memory_stays_below_what_is_told_before(tmp_path, target, dtype, experts):
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 1}
    random_mixtral(experts=2, dtype=dtype, **sizes).save_pretrained(tmp_path / "wide")
    scheme = Scheme(attention=HQQ(4), experts=experts)
    conversion = Conversion(FolderFiles(tmp_path / "wide"), target, scheme)
    rise = watch_memory()
    conversion.run(progress=False)
    told = conversion.memory_nbytes - RUNNING  # which this process takes already
    assert rise() < told + (64 << 20)  # what the heap keeps beside, after the tests before
