"""Models that mixoff builds, against stock transformers on the same weights."""

import copy
import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from tiny import EXACT, MIXED, VOCAB
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import mixoff
from mixoff import OffloadConfig, Scheme, build_model
from mixoff.errors import CheckpointError, ConfigError, MixoffError
from mixoff.layers import OffloadedExperts
from mixoff.quantization import HQQ, Unquantized

# Settings of `random_mixtral`: what the routing of each reference model is like.
REFERENCES = {
    "top-2": {},
    "every expert for every token": {"top_k": 8},
    "one expert that every token wants": {"favourite": 3},
    "top-1": {"top_k": 1},
    "top-4": {"top_k": 4},
    "16 experts": {"experts": 16},
}


@pytest.fixture(params=REFERENCES.values(), ids=REFERENCES)
def reference(request: pytest.FixtureRequest) -> dict[str, int]:
    return request.param


def prompt(tokens: int = 24) -> Tensor:
    return torch.randint(VOCAB, (1, tokens), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_in_steps(model: PreTrainedModel, ids: Tensor, prefill: int = 16) -> Tensor:
    """Return all logits: some positions at once, the others one by one with a KV cache."""
    out = model(ids[:, :prefill], use_cache=True)
    pieces = [out.logits]
    for position in range(prefill, ids.shape[1]):
        past = out.past_key_values
        out = model(ids[:, position : position + 1], past_key_values=past, use_cache=True)
        pieces.append(out.logits)
    return torch.cat(pieces, dim=1)


def stock(source: Path) -> PreTrainedModel:
    """Return stock transformers' model, its weights out of the file and where torch puts them.

    In the file they begin anywhere, and matrix products round by how a matrix is aligned.
    """
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, experts_implementation="eager"
    )
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@torch.no_grad()
def stock_with_our_weights(source: Path, ours: PreTrainedModel) -> PreTrainedModel:
    """Return stock transformers' model, its matrices replaced by ours, dequantized."""
    model, cache = stock(source), mixoff.cache_of(ours)
    for layer, (mine, plain) in enumerate(zip(ours.model.layers, model.model.layers, strict=True)):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            packed = getattr(mine.self_attn, name)
            weight = packed.layout.tensors(packed.weight)["weight"].dequantize()
            getattr(plain.self_attn, name).weight.copy_(weight)
        for expert, tensors in cache.acquire(layer, range(cache.num_experts)):
            for name, tensor in tensors.items():
                getattr(plain.mlp.experts, name)[expert].copy_(tensor.dequantize())
    return model


def test_unquantized_logits_are_stocks_bit_for_bit(reference, tiny_mixtral, quantized):
    expected = logits_in_steps(stock(tiny_mixtral(**reference)), prompt())
    model, _ = build_model(quantized(EXACT, **reference))
    assert torch.equal(logits_in_steps(model, prompt()), expected)


def test_quantized_logits_are_stocks_with_our_dequantized_weights(
    reference, tiny_mixtral, quantized
):
    model, _ = build_model(quantized(MIXED, **reference), dtype=torch.float32)
    expected = stock_with_our_weights(tiny_mixtral(**reference), model)
    assert torch.equal(logits_in_steps(model, prompt()), logits_in_steps(expected, prompt()))


@pytest.mark.parametrize("nbits", [8, 4, 3])
def test_other_widths_are_stocks_with_our_dequantized_weights_too(nbits, tiny_mixtral, quantized):
    scheme = Scheme(attention=HQQ(8, 32), experts=HQQ(nbits, 32))
    model, _ = build_model(quantized(scheme))
    expected = stock_with_our_weights(tiny_mixtral(), model)
    assert torch.equal(logits_in_steps(model, prompt()), logits_in_steps(expected, prompt()))


def test_no_number_of_slots_changes_the_logits(reference, quantized):
    path = quantized(MIXED, **reference)
    experts = reference.get("experts", 8)
    expected = logits_in_steps(build_model(path, OffloadConfig(offload_per_layer=0))[0], prompt())
    for offload_per_layer in range(1, experts):
        model, _ = build_model(path, OffloadConfig(offload_per_layer=offload_per_layer))
        assert torch.equal(logits_in_steps(model, prompt()), expected), offload_per_layer


def test_residents_never_exceed_the_slots(reference, quantized):
    experts = reference.get("experts", 8)
    offload = OffloadConfig(offload_per_layer=experts - 2)
    model, cache = build_model(quantized(MIXED, **reference), offload)
    most = []

    def count(module: OffloadedExperts, *_: object) -> None:
        most.append(len(cache.residents(module.layer)))

    for module in model.modules():
        if isinstance(module, OffloadedExperts):
            module.register_forward_hook(count)
    logits_in_steps(model, prompt())
    assert max(most) <= cache.slots_per_layer == 2


def test_host_memory_doesnt_change_the_logits(quantized):
    expected = logits_in_steps(build_model(quantized())[0], prompt())
    model, _ = build_model(quantized(), OffloadConfig(offload_per_layer=6, host_memory="100KiB"))
    assert torch.equal(logits_in_steps(model, prompt()), expected)


def test_greedy_tokens_of_generate_are_stocks(tiny_mixtral, quantized):
    model, _ = build_model(quantized(EXACT), OffloadConfig(offload_per_layer=6))
    options = {"max_new_tokens": 20, "do_sample": False}
    expected = stock(tiny_mixtral()).generate(prompt(), **options)
    assert torch.equal(model.generate(prompt(), **options), expected)


def test_sixteen_bits_compute_in_float32_on_a_cpu_unless_asked_otherwise(quantized):
    path = quantized(MIXED, dtype=torch.float16)
    assert build_model(path)[0].dtype is torch.float32
    assert build_model(path, dtype=torch.float16)[0].dtype is torch.float16


def test_from_pretrained_gives_the_same_model_once_mixoff_is_registered(quantized):
    expected = logits_in_steps(build_model(quantized())[0], prompt())
    mixoff.register()
    mixoff.register()
    model = AutoModelForCausalLM.from_pretrained(quantized())
    assert torch.equal(logits_in_steps(model, prompt()), expected)
    assert mixoff.cache_of(model).stats().misses > 0


@pytest.mark.parametrize("scheme", [MIXED, EXACT], ids=["quantized", "unquantized"])
def test_from_pretrained_fails_loudly_where_mixoff_is_not_registered(scheme, quantized):
    code = (
        "import sys; from transformers import AutoModelForCausalLM as A;"
        "A.from_pretrained(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(quantized(scheme))], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "size mismatch" in done.stderr or "mismatch" in done.stderr.lower()


def test_a_model_without_a_cache_is_told_so(tiny_mixtral):
    with pytest.raises(MixoffError, match="MixtralForCausalLM has no expert cache"):
        mixoff.cache_of(stock(tiny_mixtral()))


def test_saving_again_says_what_to_do_instead(quantized, tmp_path):
    model, _ = build_model(quantized())
    with pytest.raises(MixoffError, match="copy that folder"):
        model.save_pretrained(tmp_path / "again")


def test_copying_says_what_to_do_instead(quantized):
    model, _ = build_model(quantized())
    with pytest.raises(MixoffError, match="build the model again"):
        copy.deepcopy(model)


def test_two_models_in_one_process_dont_disturb_each_other(quantized):
    first, _ = build_model(quantized(MIXED), OffloadConfig(offload_per_layer=6))
    expected = logits_in_steps(first, prompt())
    second, _ = build_model(quantized(EXACT), OffloadConfig(offload_per_layer=5))
    other = logits_in_steps(second, prompt())
    assert torch.equal(logits_in_steps(first, prompt()), expected)
    assert torch.equal(logits_in_steps(second, prompt()), other)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_that_goes_gives_back_its_slots_files_and_threads(quantized):
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path would open one more

    logits_in_steps(build_model(quantized())[0], prompt())  # what is imported late is imported now
    gc.collect()
    before = open_files(), threading.active_count()
    model, cache = build_model(quantized())
    logits_in_steps(model, prompt())
    slots = [weakref.ref(slot) for layer in cache._slots for slot in layer]
    del model, cache
    gc.collect()
    assert (open_files(), threading.active_count()) == before
    assert all(slot() is None for slot in slots)


def test_more_offloaded_experts_than_a_layer_has_are_refused(quantized):
    with pytest.raises(ConfigError, match=r"offload_per_layer=8: .* 8 experts .* give 0 to 7"):
        build_model(quantized(), OffloadConfig(offload_per_layer=8))


def test_a_device_that_isnt_there_is_refused(quantized):
    with pytest.raises(ConfigError, match="device='nowhere'"):
        build_model(quantized(), device="nowhere")


def test_several_devices_are_refused(quantized):
    mixoff.register()
    with pytest.raises(ConfigError, match="one device"):
        AutoModelForCausalLM.from_pretrained(quantized(), device_map="auto")


def test_a_folder_of_another_format_is_refused(tiny_mixtral):
    with pytest.raises(CheckpointError, match="no mixoff checkpoint"):
        build_model(tiny_mixtral())


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        build_model(tmp_path / "nothing")


def test_a_quarter_of_the_bits_is_an_eighth_of_the_bytes(quantized):
    two, exact = (mixoff.build_model(quantized(scheme))[1] for scheme in (MIXED, EXACT))
    nbytes = [sum(slot.buffer.nbytes for slot in cache._slots[0]) for cache in (two, exact)]
    assert nbytes[0] < nbytes[1] / 4


def test_an_unquantized_matrix_keeps_the_type_it_was_given():
    weight = torch.randn(8, 16)
    assert Unquantized("bfloat16").quantize(weight)["weight"].dtype is torch.bfloat16
