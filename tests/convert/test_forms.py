"""In whatever form a Mixtral is stored, what is converted computes as stock transformers does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralForCausalLM

from mixoff.checkpoints.formats import open_checkpoint
from mixoff.config import OffloadConfig
from mixoff.convert import quantize_checkpoint
from mixoff.errors import CheckpointError, ConfigError
from mixoff.models.build import build_model
from mixoff.quantization import HQQ, HQQAxis0, Scheme, Unquantized
from support.mixtral_offloading_writer import Bits, write_released
from support.models import logits_both_ways, with_dequantized_weights
from support.tiny import EXACT, random_mixtral, stack_experts

RELEASED = Path(__file__).parents[1] / "data" / "released-layout-tiny"
REFERENCE = load_file(RELEASED / "reference.safetensors")
REFERENCE_FLOAT32 = load_file(RELEASED / "reference_float32.safetensors")


def change(
    folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file, {"format": "pt"})


def mixed_types(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    types = (torch.float32, torch.bfloat16, torch.float16)
    return {name: t.to(types[n % 3]) for n, (name, t) in enumerate(sorted(tensors.items()))}


def without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): t.clone() for name, t in tensors.items()}


def with_extras(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}


def save(folder: Path, shards: str = "1GB", **settings: Any) -> None:
    random_mixtral(experts=2, **settings).save_pretrained(folder, max_shard_size=shards)


FORMS: dict[str, Callable[[Path], None]] = {
    "float32": save,
    "float16": lambda folder: save(folder, dtype=torch.float16),
    "bfloat16": lambda folder: save(folder, dtype=torch.bfloat16),
    "tied": lambda folder: save(folder, tie_word_embeddings=True),
    "many files": lambda folder: save(folder, shards="40KB"),
}
EDITS: dict[str, tuple[dict[str, Any], Callable[[Path], None]]] = {
    "mixed types": ({}, lambda folder: change(folder, mixed_types)),
    "stacked": ({}, stack_experts),
    "other tensors too": ({}, lambda folder: change(folder, with_extras)),
    "without a prefix": (
        {"tie_word_embeddings": True},
        lambda folder: change(folder, without_prefix),
    ),
}


@pytest.fixture(params=[*FORMS, *EDITS])
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    if request.param in FORMS:
        FORMS[request.param](folder)
        return folder
    settings, edit = EDITS[request.param]
    random_mixtral(experts=2, **settings).save_pretrained(folder)
    edit(folder)
    return folder


def stock(folder: Path) -> MixtralForCausalLM:
    return MixtralForCausalLM.from_pretrained(
        folder, dtype=torch.float32, experts_implementation="eager", attn_implementation="eager"
    )


def converted(source: Path, target: Path, scheme: Scheme | None) -> Any:
    quantize_checkpoint(source, target, scheme, progress=False)
    model, _ = build_model(
        target, OffloadConfig(offload_per_layer=1), dtype=torch.float32, kernels="torch"
    )
    model.set_attn_implementation("eager")
    return model


def test_unquantized_logits_are_stocks_to_the_bit_in_every_form(form, tmp_path):
    model = converted(form, tmp_path / "model", EXACT)
    assert torch.equal(logits_both_ways(model), logits_both_ways(stock(form)))


SCHEMES = {
    "8 bits": Scheme(HQQ(8, 16), HQQ(8, 16)),
    "4 bits": Scheme(HQQ(4, 16), HQQ(4, 16)),
    "3 bits": Scheme(HQQ(3, 16), HQQ(3, 16)),
    "2 bits": Scheme(HQQ(4, 16), HQQ(2, 16, 8)),
    "axis 0": Scheme(HQQAxis0(4, 16, 16), HQQAxis0(2, 16, 16)),
    "layers apart": Scheme(HQQ(4, 16), HQQ(2, 16, 8), {0: HQQ(4, 16), 1: Unquantized("float32")}),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_quantized_logits_are_stocks_with_the_dequantized_weights(name, tiny_mixtral, tmp_path):
    source = tiny_mixtral(experts=2)
    model = converted(source, tmp_path / "model", SCHEMES[name])
    reference = with_dequantized_weights(stock(source), tmp_path / "model")
    found, expected = logits_both_ways(model), logits_both_ways(reference)
    if name == "axis 0":  # gate and up are multiplied one after the other
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    else:
        assert torch.equal(found, expected)
    assert open_checkpoint(tmp_path / "model").scheme == SCHEMES[name]


def test_a_layer_that_is_not_there_is_refused(tiny_mixtral, tmp_path):
    scheme = Scheme(layer_experts={2: HQQ(4, 16)})
    with pytest.raises(ConfigError, match="layer 2: the model has 2, 0 to 1"):
        quantize_checkpoint(tiny_mixtral(experts=2), tmp_path / "model", scheme)


# ---- the released layout


@pytest.fixture(scope="module")
def repacked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    target = tmp_path_factory.mktemp("repacked") / "model"
    quantize_checkpoint(RELEASED, target, progress=False)
    return build_model(target, OffloadConfig(offload_per_layer=4), kernels="torch")[0]


@torch.no_grad()
def test_a_repacked_checkpoint_computes_what_the_original_code_did(repacked):
    logits = repacked(REFERENCE["input_ids"]).logits
    assert torch.allclose(logits, REFERENCE_FLOAT32["logits"], rtol=0, atol=1e-4)
    difference = (logits - REFERENCE["logits"]).norm(dim=-1)
    assert (difference / REFERENCE["logits"].norm(dim=-1)).max() < 1e-2


def test_a_repacked_checkpoint_says_what_the_original_code_did(repacked):
    ids = repacked.generate(REFERENCE["input_ids"], max_new_tokens=24, do_sample=False)
    assert ids[0, 24:].tolist() == REFERENCE_FLOAT32["greedy"].tolist()


@pytest.mark.parametrize(
    ("attention", "experts", "settings"),
    [
        (
            Bits(4, 64, 256),
            Bits(3, 64, 128),
            {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4},
        ),
        (
            Bits(4, 32, 16),
            Bits(2, 16, 24),
            {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "experts": 5},
        ),
    ],
    ids=["3 bits", "other dimensions"],
)
@torch.no_grad()
def test_repacking_changes_no_logit(tiny_mixtral, tmp_path, attention, experts, settings):
    model = MixtralForCausalLM.from_pretrained(tiny_mixtral(**settings))
    write_released(model, tmp_path / "released", attention=attention, experts=experts)
    quantize_checkpoint(tmp_path / "released", tmp_path / "ours", progress=False)
    ids, offload = torch.arange(24).view(2, 12), OffloadConfig(offload_per_layer=2)
    found, expected = (
        build_model(tmp_path / name, offload)[0](ids).logits for name in ("ours", "released")
    )
    assert torch.equal(found, expected)
    scheme = open_checkpoint(tmp_path / "ours").scheme
    assert scheme == open_checkpoint(tmp_path / "released").scheme


def test_the_released_layout_is_quantized_anew_if_bits_are_asked_for(tmp_path):
    scheme = Scheme(Unquantized("float32"), Unquantized("float32"))
    model = converted(RELEASED, tmp_path / "model", scheme)
    with torch.no_grad():
        logits = model(REFERENCE["input_ids"]).logits
    assert torch.allclose(logits, REFERENCE_FLOAT32["logits"], rtol=0, atol=1e-4)
    assert open_checkpoint(tmp_path / "model").scheme == scheme


# ---- refusals


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "mixoff"])
def test_a_quantized_checkpoint_is_refused_by_its_method(tiny_mixtral, tmp_path, method):
    source = Path(shutil.copytree(tiny_mixtral(experts=2), tmp_path / "source"))
    settings = json.loads((source / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": method}
    (source / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=rf"{method}.* already\): give the model that it was"):
        quantize_checkpoint(source, tmp_path / "model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pt"])
def test_pickles_are_refused_with_a_way_out(tiny_mixtral, tmp_path, name):
    source = Path(shutil.copytree(tiny_mixtral(experts=2), tmp_path / "source"))
    (source / "model.safetensors").rename(source / name)
    with pytest.raises(CheckpointError, match=rf"pickles \({name}\).*save_pretrained"):
        quantize_checkpoint(source, tmp_path / "model")
