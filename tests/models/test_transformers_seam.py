"""What mixoff reads of transformers and torch beyond their documentation is there and works."""

import pytest
import torch
from torch import nn
from transformers import MixtralForCausalLM, PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from mixoff.models import transformers_seam as seam
from support.tiny import random_mixtral


@pytest.fixture
def model() -> MixtralForCausalLM:
    return random_mixtral(experts=2, num_hidden_layers=1)


@pytest.fixture
def experts(model: MixtralForCausalLM) -> nn.Module:
    return model.model.layers[0].mlp.experts


def test_a_module_that_is_marked_initialized_is_not_initialized_again(model, experts):
    norm = model.model.norm
    for module in (experts, norm):
        module._is_hf_initialized = False
        nn.init.constant_(module.get_parameter("weight" if module is norm else "down_proj"), 7)
    seam.mark_initialized(experts)
    model.initialize_weights()
    assert (experts.down_proj == 7).all()
    assert (norm.weight == 1).all()


def test_unexpected_tensors_that_are_ignored_are_not_reported(model, tmp_path, monkeypatch):
    model.config.num_hidden_layers = 1
    model.register_buffer("more", torch.zeros(1))
    model.register_buffer("others", torch.zeros(1))
    model.save_pretrained(tmp_path)
    own = MixtralForCausalLM.__init__

    def ignoring(self, *args, **settings):
        own(self, *args, **settings)
        seam.ignore_unexpected(self, r"^more$")

    monkeypatch.setattr(MixtralForCausalLM, "__init__", ignoring)
    _, info = MixtralForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert [*info["unexpected_keys"]] == ["others"]
    assert not PreTrainedModel._keys_to_ignore_on_load_unexpected


def test_a_tied_head_is_among_the_tied_parameters(model):
    assert seam.tied_parameters(model) == set()
    tied = random_mixtral(experts=2, num_hidden_layers=1, tie_word_embeddings=True)
    assert seam.tied_parameters(tied) == {"lm_head.weight"}


def test_the_attention_function_that_is_set_is_read_and_used(model):
    model.set_attn_implementation("sdpa")
    assert seam.attention_implementation(model.config) == "sdpa"
    ids = torch.arange(5)[None]
    assert model(ids, output_attentions=False).attentions is None
    seam.set_attention_implementation(model.config, "eager")
    assert seam.attention_implementation(model.config) == "eager"
    assert model(ids, output_attentions=True).attentions[0] is not None


def test_the_gate_between_an_experts_matrices_is_the_modules_own(experts):
    x = torch.randn(3, 192, generator=torch.Generator().manual_seed(0))
    gate, up = x.chunk(2, dim=-1)
    assert torch.equal(seam.apply_gate(experts)(x), nn.functional.silu(gate) * up)


def test_a_silu_is_one_until_it_is_replaced_or_has_a_hook(experts):
    assert seam.is_silu(experts)
    hook = experts.act_fn.register_forward_hook(lambda *_: None)
    assert not seam.is_silu(experts)
    hook.remove()
    assert seam.is_silu(experts)
    experts.act_fn = nn.GELU()
    assert not seam.is_silu(experts)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_a_module_are_seen(register):
    module = nn.Linear(2, 2)
    assert not seam.has_hooks(module)
    hook = getattr(module, register)(lambda *_: None)
    assert seam.has_hooks(module)
    hook.remove()
    assert not seam.has_hooks(module)


def test_a_forward_of_an_instances_own_counts_as_a_hook():
    module = nn.Linear(2, 2)
    module.forward = module.forward
    assert seam.has_hooks(module)


def test_hooks_of_all_modules_are_seen():
    assert not seam.any_module_has_hooks()
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert seam.any_module_has_hooks()
    hook.remove()
    assert not seam.any_module_has_hooks()


@pytest.mark.parametrize(
    "name",
    [
        "validate_environment",
        "update_dtype",
        "is_serializable",
        "_process_model_before_weight_loading",
        "_process_model_after_weight_loading",
    ],
)
def test_a_quantizers_methods_have_the_names_that_mixoff_overrides(name):
    assert callable(getattr(HfQuantizer, name))
