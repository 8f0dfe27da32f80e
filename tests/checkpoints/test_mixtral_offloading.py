"""What mixtral-offloading released is read as its own code read it, or is refused by name."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MixtralForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache

from mixoff.cache.cache import ExpertCache
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.checkpoints.mixoff_format import MixoffCheckpoint
from mixoff.checkpoints.mixtral_offloading import MixtralOffloadingCheckpoint
from mixoff.config import OffloadConfig
from mixoff.errors import CheckpointError
from mixoff.models.build import build_model
from mixoff.models.layers.linear import QuantizedLinear
from mixoff.planning.plan import plan_memory
from mixoff.quantization import HQQAxis0, Scheme, StackedRows
from support.mixtral_offloading_writer import INDEX, NON_EXPERT, Bits, write_released

FOLDER = Path(__file__).parents[1] / "data" / "released-layout-tiny"
REFERENCE = load_file(FOLDER / "reference.safetensors")
REFERENCE_FLOAT32 = load_file(FOLDER / "reference_float32.safetensors")
COUNTS = json.loads((FOLDER / "reference.json").read_text())
EXPERT = "model-layer1-expert3.safetensors"
IN_INDEX = "model.layers.1.block_sparse_moe.experts.3."

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4}
WRITTEN: dict[str, dict[str, Any]] = {
    "4-bit attention, 3-bit experts": {
        "bits": (Bits(4, 64, 256), Bits(3, 64, 128)),
        "settings": SIZES,
    },
    "other dimensions": {
        "bits": (Bits(4, 32, 16), Bits(2, 16, 24)),
        "settings": {
            "hidden_size": 96,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "experts": 5,
            "top_k": 3,
            "vocab_size": 130,
        },
    },
    "8-bit attention, 4-bit experts, a tied head": {
        "bits": (Bits(8, 64, 32), Bits(4, 64, 128)),
        "settings": SIZES | {"tie_word_embeddings": True, "head_dim": 16},
    },
    "3-bit attention, 8-bit experts, one expert a layer": {
        "bits": (Bits(3, 24, 64), Bits(8, 128, 64)),
        "settings": SIZES | {"hidden_size": 192, "experts": 1, "top_k": 1},
    },
}


def build(
    folder: Path = FOLDER, offload: int = 4, kernels: str = "torch"
) -> tuple[PreTrainedModel, ExpertCache]:
    """Return a model whose weights are dequantized, or that multiplies with other kernels."""
    return build_model(folder, OffloadConfig(offload_per_layer=offload), kernels=kernels)


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Tensor = REFERENCE["input_ids"]) -> Tensor:
    return model(ids).logits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the tiny checkpoint, free to be damaged."""
    return Path(shutil.copytree(FOLDER, tmp_path / "copy"))


@pytest.fixture(scope="module", params=WRITTEN)
def written(
    request: pytest.FixtureRequest,
    tiny_mixtral: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[MixtralForCausalLM, Path]:
    """Write a random Mixtral; return it with the weights that were written, and the folder."""
    (attention, experts), settings = WRITTEN[request.param].values()
    folder = tmp_path_factory.mktemp("released") / "model"
    stock = MixtralForCausalLM.from_pretrained(
        tiny_mixtral(**settings), experts_implementation="eager"
    )
    write_released(stock, folder, attention=attention, experts=experts)
    return stock, folder


# ---- what the original code computed


def test_logits_are_those_of_the_same_codes_in_stock_transformers():
    expected = REFERENCE_FLOAT32["logits"]
    assert torch.allclose(logits_of(build()[0]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_greedy_tokens_are_those_of_the_same_codes_in_stock_transformers(kernels):
    model, _ = build(kernels=kernels)
    ids = model.generate(REFERENCE["input_ids"], max_new_tokens=24, do_sample=False)
    assert ids[0, 24:].tolist() == REFERENCE_FLOAT32["greedy"].tolist()


def test_logits_are_the_original_codes_within_what_its_float16_lost():
    difference = (logits_of(build()[0]) - REFERENCE["logits"]).norm(dim=-1)
    assert (difference / REFERENCE["logits"].norm(dim=-1)).max() < 1e-2


@torch.no_grad()
def test_hits_and_misses_are_those_that_the_original_cache_counted():
    model, cache = build(offload=COUNTS["offload_per_layer"])
    start = cache.stats()
    logits_of(model)
    past = DynamicCache(config=model.config)
    model(REFERENCE["input_ids"], past_key_values=past)
    for token in REFERENCE["greedy"][:23]:
        model(token.view(1, 1), past_key_values=past)
    counted = cache.stats() - start
    expected = COUNTS["hits_misses_per_layer_after_prefill24_decode24"]
    assert [*zip(counted.hits_per_layer, counted.misses_per_layer, strict=True)] == [
        tuple(expected[layer]) for layer in ("0", "1")
    ]


@pytest.mark.parametrize("kernels", ["torch", "auto"])
@pytest.mark.parametrize("offload", range(8))
def test_logits_do_not_depend_on_how_many_experts_are_outside(offload, kernels):
    found, expected = (logits_of(build(FOLDER, n, kernels)[0]) for n in (offload, 0))
    assert torch.equal(found, expected)


# ---- what another writer of this layout wrote


@pytest.mark.parametrize("outside", ["none", "all but one"])
def test_logits_are_stocks_with_the_weights_that_were_written(written, outside):
    stock, folder = written
    experts = stock.config.num_local_experts
    model, _ = build(folder, offload=experts - 1 if outside == "all but one" else 0)
    ids = torch.arange(24).view(2, 12)
    assert torch.allclose(logits_of(model, ids), logits_of(stock, ids), rtol=0, atol=1e-5)


def test_bits_and_groups_are_read_off_the_shapes(written, request):
    attention, experts = WRITTEN[request.node.callspec.params["written"]]["bits"]
    found = open_checkpoint(written[1]).scheme
    assert found == Scheme(*(HQQAxis0(**vars(bits)) for bits in (attention, experts)))


# ---- what is read, and how


def test_the_kind_of_a_checkpoint_is_told_by_its_folder(quantized):
    assert isinstance(open_checkpoint(FOLDER), MixtralOffloadingCheckpoint)
    assert isinstance(open_checkpoint(quantized()), MixoffCheckpoint)


def test_a_record_is_all_that_follows_its_files_header():
    for layer in open_checkpoint(FOLDER).expert_locations():
        for location in layer:
            length = int.from_bytes(location.file.read_bytes()[:8], "little")
            assert location.offset == 8 + length
            assert location.offset + location.nbytes == location.file.stat().st_size


def test_experts_that_are_stored_alike_share_a_layout():
    layouts = [layout for layer in open_checkpoint(FOLDER).expert_layouts() for layout in layer]
    assert len(layouts) == 16
    assert len({id(layout) for layout in layouts}) == 1


def test_an_expert_has_gate_and_up_as_one_matrix_of_both_rows():
    checkpoint = open_checkpoint(FOLDER)
    location = checkpoint.expert_locations()[1][3]
    record = torch.frombuffer(bytearray(location.file.read_bytes()), dtype=torch.uint8)
    expert = checkpoint.expert_layouts()[1][3].tensors(record[location.offset :])
    assert isinstance(expert["gate_up_proj"], StackedRows)
    assert expert["gate_up_proj"].shape == (1024, 256)
    assert expert["gate_up_proj"].dequantize(torch.float16).shape == (1024, 256)
    assert expert["down_proj"].dequantize().shape == (256, 512)
    assert sum(matrix.nbytes for matrix in expert.values()) == location.nbytes


def test_attention_stays_packed():
    model, _ = build()
    packed = [name for name, m in model.named_modules() if isinstance(m, QuantizedLinear)]
    assert len(packed) == 8
    assert all(model.get_submodule(name).weight.dtype == torch.uint8 for name in packed)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_is_mapped():
    model, _ = build()
    assert f"{FOLDER}/model-" not in Path("/proc/self/maps").read_text()
    assert model


def test_the_plan_has_every_expert_on_disk_and_slots_for_some():
    plan = plan_memory(open_checkpoint(FOLDER), OffloadConfig(offload_per_layer=6))
    assert plan.disk == sum(e.nbytes for s in open_checkpoint(FOLDER).expert_locations() for e in s)
    assert 2 * 2 * plan.expert_nbytes <= plan.slots < plan.disk


def test_the_models_settings_tell_how_it_is_quantized():
    written = json.loads(build()[0].config.to_json_string(use_diff=False))["quantization_config"]
    assert written["experts"] == HQQAxis0(2, 16, 128).to_dict()


def test_settings_of_generation_are_read_if_there_are_any(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert build(folder)[0].generation_config.eos_token_id == 7
    assert build()[0].generation_config.eos_token_id == 2


# ---- what is refused


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def place(folder: Path, name: str, file: object) -> None:
    """Let the index say that a tensor is in another file; None removes it."""
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"] | {name: file}
    edit(folder / INDEX, weight_map={k: v for k, v in weight_map.items() if v is not None})


def change(path: Path, **tensors: Tensor | None) -> None:
    """Write a file again with other tensors, whose names have __ for a dot; None removes one."""
    changes = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    content = load_file(path) | changes
    save_file({k: v for k, v in content.items() if v is not None}, path, {"format": "pt"})


def shift(path: Path) -> None:
    """Let a file's tensors begin a byte later, as a careless writer might."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + length], raw[8 + length :]
    path.write_bytes((length + 1).to_bytes(8, "little") + header + b" " + data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / INDEX).unlink(), r"index\.json: can't be read \(No such file"),
    "an index without files": (lambda f: edit(f / INDEX, weight_map=[]), "lists no files"),
    "no expert": (lambda f: (f / EXPERT).unlink(), rf"{EXPERT}: can't be read \(No such file"),
    "no non-expert file": (
        lambda f: (f / NON_EXPERT).unlink(),
        rf"{NON_EXPERT}: can't be read \(No such file",
    ),
    "half an expert": (lambda f: cut(f / EXPERT), f"{EXPERT}: .* the file is cut off"),
    "a pickle": (
        lambda f: (f / EXPERT).write_bytes(pickle.dumps({"w1": [1.0] * 999})),
        f"{EXPERT}: no safetensors file",
    ),
    "an expert that the index lacks": (
        lambda f: place(f, IN_INDEX + "w2.meta.zero_q", None),
        rf"{INDEX}: {IN_INDEX}w2\.meta\.zero_q is missing: fetch the checkpoint again",
    ),
    "an expert that its file lacks": (
        lambda f: change(f / EXPERT, w2__meta__zero_q=None),
        rf"{EXPERT}: w2\.meta\.zero_q is missing, though the index places",
    ),
    "a norm that the index lacks": (
        lambda f: place(f, "model.norm.weight", None),
        r"model\.norm\.weight is missing",
    ),
    "other codes": (
        lambda f: change(f / EXPERT, w1__W_q=torch.zeros(8, 8192, dtype=torch.uint8)),
        r"nbits=2, .*experts\.3\.w1\.\* as HQQAxis0\(nbits=4, .*: mixoff reads one method",
    ),
    "too few codes": (
        lambda f: change(f / EXPERT, w1__W_q=torch.zeros(4, 8000, dtype=torch.uint8)),
        r"w1 is no 512 x 256 matrix, .*W_q is uint8 \[4, 8000\] where uint8 \[4, 8192\] would fit",
    ),
    "codes packed by rows": (
        lambda f: change(f / EXPERT, w1__W_q=torch.zeros(52, 256, dtype=torch.int32)),
        r"W_q is int32 \[52, 256\] where int32 \[2, 8192\] would fit",
    ),
    "codes of another type": (
        lambda f: change(f / EXPERT, w1__W_q=torch.zeros(4, 8192, dtype=torch.int64)),
        r"w1\.W_q is I64 and begins at byte \d+: no type that mixoff reads",
    ),
    "no codes at all": (
        lambda f: change(f / EXPERT, w1__W_q=torch.zeros((), dtype=torch.uint8)),
        "w1 is no 512 x 256 matrix",
    ),
    "no zeros at all": (
        lambda f: change(f / EXPERT, w1__meta__zero_q=torch.zeros(0, 0, dtype=torch.uint8)),
        "w1 is no 512 x 256 matrix",
    ),
    "scales of another type": (
        lambda f: change(f / EXPERT, w1__meta__meta_scale__scale=torch.ones(1, 64)),
        r"meta_scale\.scale is float32 \[1, 64\] where float16 \[1, 64\] would fit",
    ),
    "tensors between other bytes": (
        lambda f: shift(f / EXPERT),
        rf"{EXPERT}: .*begins at byte \d+: .* no multiple of its size",
    ),
    "an expert in two files": (
        lambda f: place(f, IN_INDEX + "w2.W_q", "model-layer1-expert4.safetensors"),
        "other tensors lie between those of .*: mixoff reads an expert at once",
    ),
    "no number for a scale": (
        lambda f: change(
            f / EXPERT, w3__meta__meta_scale__scale=torch.full((1, 64), torch.nan).half()
        ),
        rf"{EXPERT}: {IN_INDEX}w3\.meta\.meta_scale\.scale holds a non-finite number",
    ),
    "an endless zero": (
        lambda f: change(f / EXPERT, w1__meta__meta_zero__zero=torch.tensor(torch.inf).half()),
        r"meta_zero\.zero holds a non-finite number",
    ),
    "no number in attention": (
        lambda f: change(
            f / NON_EXPERT,
            model__layers__0__self_attn__k_proj__meta__meta_zero__scale=torch.tensor(
                torch.nan
            ).half(),
        ),
        rf"{NON_EXPERT}: model\.layers\.0\.self_attn\.k_proj\..* holds a non-finite number",
    ),
    "a gate of another type": (
        lambda f: change(
            f / NON_EXPERT,
            model__layers__0__block_sparse_moe__gate__weight=torch.zeros(8, 256, dtype=torch.int32),
        ),
        r"gate\.weight is I32 .*; config\.json asks for \(8, 256\) in one of F16, BF16, F32",
    ),
    "code of its own": (
        lambda f: edit(f / "config.json", auto_map={"AutoModelForCausalLM": "evil--code.Model"}),
        r"config\.json: asks for code of its own \(auto_map\), and mixoff runs none",
    ),
    "another architecture": (
        lambda f: edit(f / "config.json", model_type="llama"),
        r"config\.json: model_type='llama'",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_refused_before_a_token_is_computed(folder, kind):
    damage, message = DAMAGES[kind]
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        build(folder)


@pytest.mark.parametrize(
    "file",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "deep/inside.safetensors",
        "..",
        "",
        "pytorch_model.bin",
        ["model-trunk.safetensors"],
        None,
        7,
        "\0.safetensors",
        "\ud800.safetensors",
    ],
)
def test_an_index_that_names_no_file_of_the_folder_is_refused(folder, file):
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(folder / INDEX, weight_map=weight_map | {"lm_head.weight": file})
    with pytest.raises(CheckpointError, match=r"no safetensors file of this folder|no JSON"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_hidden_layers", 1),
        ("num_hidden_layers", 3),
        ("num_hidden_layers", 10**12),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", "two"),
        ("num_local_experts", 4),
        ("num_local_experts", 16),
        ("num_local_experts", 10**12),
        ("hidden_size", 128),
        ("hidden_size", 10**300),
        ("intermediate_size", 1024),
        ("intermediate_size", -512),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("num_key_value_heads", None),
        ("vocab_size", 513),
    ],
)
def test_settings_of_another_model_are_refused(folder, setting, value):
    edit(folder / "config.json", **{setting: value})
    with pytest.raises(CheckpointError, match=r"config\.json|index\.json"):
        open_checkpoint(folder)
