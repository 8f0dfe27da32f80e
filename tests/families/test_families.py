"""A family's classes and names stand in one room, and settings of other families are refused."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from mixoff.errors import CheckpointError
from mixoff.families import FAMILIES, architecture_of
from support.tiny import random_mixtral

PACKAGE = Path(__file__).resolve().parents[2] / "mixoff"
READERS = {PACKAGE / "checkpoints" / "mixtral_offloading.py"}  # of a layout with names of its own
# Classes of transformers and names of tensors. Prose may say what a Mixtral is.
NAMES = re.compile(
    r"\bMixtral(?!Offloading)[A-Z]\w*"
    r"|families\.mixtral|modeling_mixtral"
    r"|block_sparse_moe|mlp\\?\.(experts|gate)|self_attn"
    r"|\b[qkvo]_proj\b|\bw[123]\b|\bmodel\\?\.layers|embed_tokens|lm_head\.weight|layernorm"
)


def test_no_other_room_names_a_familys_classes_or_tensors():
    named = [
        f"{path.relative_to(PACKAGE)}:{number}: {match[0]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE / "families" and path not in READERS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if (match := NAMES.search(line))
    ]
    assert not named


@pytest.mark.parametrize("family", ["llama", None, ["mixtral"], "Mixtral"])
def test_another_family_is_refused_with_those_that_are_read(family):
    with pytest.raises(
        CheckpointError,
        match=rf"^a/config\.json: model_type=.*: mixoff reads {next(iter(FAMILIES))} alone",
    ):
        architecture_of({"model_type": family}, Path("a/config.json"))


# Of each family, what makes one of transformers' models with these settings.
SMALL_MODELS: dict[str, Callable[..., PreTrainedModel]] = {"mixtral": random_mixtral}
SETTINGS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "other sizes": {
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "experts": 3,
    },
}


def test_every_family_has_a_small_model():
    assert SMALL_MODELS.keys() == FAMILIES.keys()


@pytest.fixture(params=SETTINGS)
def settings(request: pytest.FixtureRequest) -> dict[str, object]:
    return SETTINGS[request.param]


@pytest.fixture(params=SMALL_MODELS)
def model(request: pytest.FixtureRequest, settings: dict[str, object]) -> PreTrainedModel:
    return SMALL_MODELS[request.param](**settings)


def test_names_and_shapes_are_those_of_transformers_model(model):
    architecture = architecture_of(model.config.to_dict(), Path("config.json"))
    shapes = dict(architecture.non_expert_shapes())
    for layer in range(architecture.num_layers):
        (gate_up,), (down,) = architecture.expert_tensors(layer).values()
        shapes |= dict([gate_up, down])
        assert gate_up[0] == architecture.experts_tensor(layer)
        assert {name for name in shapes if name.startswith(architecture.layer_prefix(layer))}
    assert shapes == {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_packed_matrices_are_those_of_attention(model):
    architecture = architecture_of(model.config.to_dict(), Path("config.json"))
    packed = {name for name, _ in model.named_parameters() if architecture.is_packed(name)}
    attention = {f"model.layers.{n}.self_attn.{m}_proj.weight" for n in (0, 1) for m in "qkvo"}
    assert packed == attention


def test_transformers_gets_the_settings_of_the_model(model):
    settings = architecture_of(model.config.to_dict(), Path("config.json")).transformers_config()
    assert settings.to_diff_dict() == model.config.to_diff_dict()


@pytest.mark.parametrize("family", SMALL_MODELS)
def test_settings_that_transformers_refuses_are_refused_by_their_file(family):
    settings = SMALL_MODELS[family](experts=2).config.to_dict() | {"hidden_act": "nonsense"}
    architecture = architecture_of(settings, Path("a/config.json"))
    with pytest.raises(
        CheckpointError, match=r"^a/config\.json: transformers refuses its settings \(.*nonsense"
    ):
        architecture.transformers_config()
