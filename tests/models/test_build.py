"""What mixoff builds computes exactly what stock transformers does with the same weights."""

import copy
import gc
import json
import re
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, MixtralForCausalLM, PreTrainedModel

import mixoff
from mixoff.cache.cache import ExpertCache, cache_of
from mixoff.checkpoints.folder import INDEX_NAME
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.checkpoints.mixoff_format import layer_file
from mixoff.config import OffloadConfig
from mixoff.errors import CheckpointError, ConfigError, MixoffError
from mixoff.models.build import build_model
from mixoff.models.quantizer import register
from mixoff.planning.plan import plan_memory
from mixoff.quantization import HQQ, Scheme, Unquantized
from support.models import logits_both_ways, prompt, with_dequantized_weights
from support.tiny import EXACT, MIXED

REFERENCES: dict[str, dict[str, Any]] = {
    "top-2 of 8": {},
    "dense routing": {"experts": 4, "top_k": 4},
    "skewed routing": {"favourite": 3},
    "top-1": {"top_k": 1},
    "top-4": {"top_k": 4},
    "16 experts": {"experts": 16},
}
EVERY_OFFLOAD = [
    pytest.param(settings, offload, id=f"{name}, {offload} outside")
    for name, settings in REFERENCES.items()
    for offload in range(settings.get("experts", 8))
]
SOME_OFFLOADS = [
    pytest.param(settings, offload, id=f"{name}, {offload} outside")
    for name, settings in REFERENCES.items()
    for offload in (0, settings.get("experts", 8) - 1)
]
HALF = Scheme(attention=Unquantized("float16"), experts=Unquantized("float16"))
THREE_BITS = Scheme(attention=HQQ(8, 64), experts=HQQ(3, 32))


@pytest.fixture(scope="module")
def stock(tiny_mixtral: Callable[..., Path]) -> Callable[..., MixtralForCausalLM]:
    """Load a random Mixtral as transformers does, to compute with its experts one by one."""

    @cache
    def load(dtype: torch.dtype = torch.float32, **settings: Any) -> MixtralForCausalLM:
        return MixtralForCausalLM.from_pretrained(
            tiny_mixtral(**settings), dtype=dtype, experts_implementation="eager"
        )

    return load


@pytest.fixture(scope="module")
def expected(stock: Callable[..., MixtralForCausalLM]) -> Callable[..., Tensor]:
    """Return stock's logits of the prompt, at once and then token by token."""
    return cache(lambda **settings: logits_both_ways(stock(**settings)))


@pytest.fixture(scope="module")
def expected_of(quantized: Callable[..., Path], stock: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return stock's logits with the weights that a scheme makes of a random Mixtral's."""

    @cache
    def compute(scheme: Scheme, **settings: Any) -> Tensor:
        folder = quantized(scheme, **settings)
        return logits_both_ways(with_dequantized_weights(stock(**settings), folder))

    return compute


def build(folder: Path, offload: int = 4, **options: Any) -> tuple[PreTrainedModel, ExpertCache]:
    return build_model(folder, OffloadConfig(offload_per_layer=offload), **options)


@pytest.mark.parametrize(("settings", "offload"), EVERY_OFFLOAD)
def test_unquantized_logits_are_stocks_to_the_bit_however_many_experts_are_outside(
    quantized, expected, settings, offload
):
    model, cache = build(quantized(EXACT, **settings), offload)

    def no_more_residents_than_slots() -> None:
        slots = settings.get("experts", 8) - offload
        assert all(len(cache.residents(layer)) <= slots for layer in (0, 1))

    found = logits_both_ways(model, after_each=no_more_residents_than_slots)
    assert torch.equal(found, expected(**settings))


@pytest.mark.parametrize("scheme", [MIXED, THREE_BITS], ids=["2 bits", "3 bits"])
@pytest.mark.parametrize(("settings", "offload"), SOME_OFFLOADS)
def test_quantized_logits_are_stocks_with_the_dequantized_weights_to_the_bit(
    quantized, expected_of, settings, offload, scheme
):
    model, _ = build(quantized(scheme, **settings), offload, kernels="torch")
    expected = expected_of(scheme, **settings)
    assert torch.equal(logits_both_ways(model), expected)
    model, _ = build(quantized(scheme, **settings), offload, kernels="auto")  # these round more
    assert torch.allclose(logits_both_ways(model), expected, rtol=0, atol=2e-3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scheme", [EXACT, MIXED], ids=["unquantized", "2 bits"])
def test_on_a_gpu_too_logits_do_not_depend_on_how_many_experts_are_outside(quantized, scheme):
    one, other = (build(quantized(scheme), offload, device="cuda")[0] for offload in (0, 7))
    assert torch.equal(logits_both_ways(one), logits_both_ways(other))


def test_the_skewed_model_sends_nearly_every_token_to_one_expert(quantized):
    model, cache = build(quantized(EXACT, favourite=3), offload=6)
    before = cache.stats()
    logits_both_ways(model)
    assert all(3 in cache.residents(layer) for layer in (0, 1))
    assert cache.stats().hit_rate > 0.4
    assert before.hits == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_type_that_was_asked_for_is_computed_in(quantized, stock, dtype):
    scheme = Scheme(EXACT.attention, Unquantized(str(dtype).removeprefix("torch.")))
    model, _ = build(quantized(scheme), dtype=dtype)
    assert model.dtype == dtype
    assert torch.equal(logits_both_ways(model), logits_both_ways(stock(dtype)))


def test_float16_weights_are_computed_with_in_float32_on_a_cpu(quantized, tiny_mixtral):
    reference = MixtralForCausalLM.from_pretrained(
        tiny_mixtral(dtype=torch.float16), dtype=torch.float32, experts_implementation="eager"
    )
    model, _ = build(quantized(HALF, dtype=torch.float16))
    assert model.dtype == torch.float32
    assert torch.equal(logits_both_ways(model), logits_both_ways(reference))


def test_greedy_text_is_stocks(quantized, stock):
    model, _ = build(quantized(EXACT))
    settings = {"max_new_tokens": 20, "do_sample": False}
    assert torch.equal(model.generate(prompt, **settings), stock().generate(prompt, **settings))


def test_a_tied_head_computes_as_stocks_does(quantized, expected):
    settings = {"tie_word_embeddings": True}
    model, _ = build(quantized(EXACT, **settings))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(logits_both_ways(model), expected(**settings))


@pytest.mark.parametrize("scheme", [EXACT, MIXED])
def test_from_pretrained_gives_the_same_model_once_mixoff_is_registered(quantized, scheme):
    mixoff.register()
    plain = AutoModelForCausalLM.from_pretrained(quantized(scheme))
    model, _ = build(quantized(scheme))
    assert torch.equal(logits_both_ways(plain), logits_both_ways(model))


def test_a_model_without_its_head_is_built_too(quantized, stock):
    register()
    model = AutoModel.from_pretrained(quantized(EXACT))
    with torch.no_grad():
        found = model(prompt).last_hidden_state
        assert torch.equal(found, stock().model(prompt).last_hidden_state)


UNREGISTERED = """
import sys
from transformers import AutoModelForCausalLM
for path in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(path)
    except RuntimeError as error:
        print(type(error).__name__, str(error).replace("\\n", " "))
    else:
        print("it loads")
AutoModelForCausalLM.from_pretrained(path)
"""


def test_without_register_loading_fails_with_shapes_that_clash(quantized):
    folders = [str(quantized(scheme)) for scheme in (MIXED, EXACT)]
    done = subprocess.run(
        [sys.executable, "-c", UNREGISTERED, *folders], capture_output=True, text=True
    )
    assert done.returncode
    assert re.findall("it loads|mismatch", done.stdout) == ["mismatch"] * 2, done.stdout


def test_registering_again_changes_nothing(quantized, expected):
    for _ in range(3):
        register()
    model, _ = build(quantized(EXACT))
    assert torch.equal(logits_both_ways(model), expected())


def test_the_cache_is_found_in_the_model(quantized):
    model, cache = build(quantized(EXACT))
    assert cache_of(model) is cache


def test_the_offload_that_was_asked_for_is_the_models(quantized):
    _, cache = build(quantized(EXACT), offload=6)
    assert cache.slots_per_layer == 2
    assert cache.residents(1) == {6, 7}


def test_logits_are_the_same_from_host_memory_as_from_disk(quantized, expected):
    offload = OffloadConfig(offload_per_layer=7, host_memory="1GiB")
    model, _ = build_model(quantized(EXACT), offload)
    for _ in range(2):
        assert torch.equal(logits_both_ways(model), expected())


def test_each_expert_of_a_step_is_counted_once_a_layer(quantized):
    model, cache = build(quantized(EXACT, top_k=8), offload=5)
    with torch.no_grad():
        model(prompt)
    assert cache.stats().hits_per_layer == (3, 3)
    assert cache.stats().misses_per_layer == (5, 5)


def test_bytes_moved_are_a_record_for_each_miss(quantized):
    model, cache = build(quantized(MIXED), offload=6)
    logits_both_ways(model)
    stride = open_checkpoint(quantized(MIXED)).expert_layouts()[0][0].stride
    assert cache.stats().bytes_moved == cache.stats().misses * stride > 0


def test_two_models_in_one_process_are_both_right(quantized, expected):
    one, _ = build(quantized(EXACT), offload=6)
    other, _ = build(quantized(EXACT, top_k=4), offload=2)
    assert torch.equal(logits_both_ways(one), expected())
    assert torch.equal(logits_both_ways(other), expected(top_k=4))
    assert torch.equal(logits_both_ways(one), expected())


def test_a_step_that_failed_does_not_change_the_next(quantized, expected, tmp_path):
    folder = Path(shutil.copytree(quantized(EXACT), tmp_path / "copy"))
    model, _ = build(folder, offload=7)
    layer = folder / layer_file(1)
    content = layer.read_bytes()
    with layer.open("r+b") as file:
        file.truncate(8192)
    with pytest.raises(CheckpointError, match="the file ends inside a record"):
        logits_both_ways(model)
    with layer.open("r+b") as file:
        file.write(content)
    assert torch.equal(logits_both_ways(model), expected())


def test_a_forward_pass_keeps_nothing_for_a_backward_one(quantized):
    model, _ = build(quantized(MIXED))
    assert model(prompt).logits.grad_fn is None


def traces() -> tuple[list[str], int, int]:
    """Return what a process holds: open files, threads, and bytes of tensors."""
    gc.collect()
    files = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    nbytes = sum(o.nbytes for o in gc.get_objects() if issubclass(type(o), Tensor))
    return sorted(files), threading.active_count(), nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_that_goes_gives_back_its_files_threads_and_memory(quantized):
    folder = quantized(MIXED)
    build(folder)  # what transformers keeps from its first model
    before = traces()
    model, cache = build_model(folder, OffloadConfig(host_memory="1GiB"))
    logits_both_ways(model)
    assert traces() != before
    gone = weakref.ref(model), weakref.ref(cache)
    del model, cache
    assert traces() == before
    assert [reference() for reference in gone] == [None, None]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_keeps_no_file_mapped(quantized):
    model, _ = build(quantized(EXACT))
    mapped = Path("/proc/self/maps").read_text()
    assert str(quantized(EXACT)) not in mapped
    assert model


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_that_could_not_be_built_leaves_no_file_open(quantized, damaged):
    build(quantized(MIXED))
    before = traces()[0]
    with pytest.raises(CheckpointError):
        build(damaged("record"))
    assert traces()[0] == before


def test_saving_a_model_says_what_to_do_instead_and_writes_nothing(quantized, tmp_path):
    model, _ = build(quantized(EXACT))
    with pytest.raises(MixoffError, match=r"experts stay in .*: copy that folder instead"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: torch.save(model, "/dev/null")])
def test_copying_a_model_says_what_to_do_instead(quantized, duplicate):
    model, _ = build(quantized(EXACT))
    with pytest.raises(MixoffError, match="build the model again"):
        duplicate(model)


def test_the_models_settings_can_be_shown_and_hold_no_run_settings(quantized):
    model, _ = build(quantized(MIXED))
    written = json.loads(model.config.to_json_string(use_diff=False))["quantization_config"]
    assert (
        written == json.loads((quantized(MIXED) / "config.json").read_text())["quantization_config"]
    )


@pytest.mark.parametrize("offload", [9, 100])
def test_more_experts_outside_than_there_are_is_refused_with_what_would_do(quantized, offload):
    with pytest.raises(
        ConfigError, match=rf"offload_per_layer={offload}: .* 8 experts: give 0 to 8"
    ):
        build(quantized(EXACT), offload)


def test_a_model_without_any_slot_gives_the_same_logits(quantized):
    ids = torch.arange(12)[None]
    (without, cache), (with_all, _) = (build(quantized(EXACT), offload) for offload in (8, 0))
    assert torch.equal(without(ids).logits, with_all(ids).logits)
    assert cache.stats().hits == 0


def test_a_model_gets_the_slots_that_its_budget_pays_for(quantized):
    folder = quantized(EXACT)
    budget = plan_memory(open_checkpoint(folder), OffloadConfig(offload_per_layer=5)).device_nbytes
    _, cache = build_model(folder, OffloadConfig(device_memory=budget))
    assert cache.slots_per_layer == 3
    assert build_model(folder, OffloadConfig.auto())[1].slots_per_layer == 8


def test_a_budget_that_is_too_small_is_refused_before_anything_is_loaded(quantized, monkeypatch):
    monkeypatch.delattr("mixoff.models.build.AutoModelForCausalLM.from_pretrained")
    with pytest.raises(ConfigError, match=r"device_memory='64KiB' .* bytes or more"):
        build_model(quantized(EXACT), OffloadConfig(device_memory="64KiB"))


@pytest.mark.parametrize(
    ("device", "reason"),
    [("nonsense", "Expected one of"), ("cuda:99", "."), (torch.device("hpu"), ".")],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_may_be(quantized, device, reason):
    with pytest.raises(ConfigError, match=rf"device='{device}': {reason}.*; give cpu, or cuda"):
        build(quantized(EXACT), device=device)


@pytest.mark.parametrize("device_map", ["auto", {"model": "cpu", "lm_head": "meta"}])
def test_a_model_on_several_devices_is_refused(quantized, device_map):
    register()
    with pytest.raises(ConfigError, match="keeps a model on one device, so name one"):
        AutoModelForCausalLM.from_pretrained(quantized(EXACT), device_map=device_map)


def test_from_pretrained_takes_the_name_of_a_device(quantized, expected):
    register()
    model = AutoModelForCausalLM.from_pretrained(quantized(EXACT), device_map="cpu")
    assert torch.equal(logits_both_ways(model), expected())


@pytest.mark.parametrize("path", ["/absent/folder", Path("absent")])
def test_a_missing_folder_is_named(path):
    with pytest.raises(CheckpointError, match=f"{path}: no such folder"):
        build_model(path)


def test_an_unquantized_model_is_told_apart_and_how_to_convert_it(tiny_mixtral):
    with pytest.raises(
        CheckpointError, match=r"no mixoff checkpoint .*mixoff\.quantize_checkpoint"
    ):
        build_model(tiny_mixtral())


@pytest.fixture
def damaged(quantized: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that makes a checkpoint with one kind of damage."""

    def make(kind: str) -> Path:
        folder = Path(shutil.copytree(quantized(MIXED), tmp_path / kind))
        DAMAGES[kind](folder)
        return folder

    return make


def flip(folder: Path, layer: int, offset: int) -> None:
    """Flip a bit, so many bytes after a header; or before a file's end."""
    path = folder / layer_file(layer)
    content = bytearray(path.read_bytes())
    content[offset + 4096 if offset >= 0 else offset] ^= 1
    path.write_bytes(content)


def set_quantization(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def set_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "record": lambda folder: flip(
        folder, 1, 8 * open_checkpoint(folder).expert_layouts()[0][0].stride - 4096
    ),
    "non_expert": lambda folder: flip(folder, 1, -1),
    "version": lambda folder: set_quantization(folder, format_version=2),
    "method": lambda folder: set_quantization(folder, experts={"method": "gptq"}),
    "attention": lambda folder: set_quantization(folder, attention=HQQ(3, 16).to_dict()),
    "vocabulary": lambda folder: set_config(folder, vocab_size=300),
    "heads": lambda folder: set_config(folder, num_key_value_heads=4),
    "index": lambda folder: (folder / INDEX_NAME).unlink(),
}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("record", "expert 7 of layer 1 is damaged"),
        ("non_expert", r"layer-00001\.safetensors: .* is damaged"),
        ("version", "format version 2: this mixoff reads version 1; upgrade mixoff"),
        ("method", "quantization method 'gptq': this mixoff knows hqq, hqq-axis0, none"),
        ("attention", r"q_proj\.weight is \(\d+,\); config\.json asks for \(\d+,\)"),
        ("vocabulary", r"embed_tokens\.weight is \(256, 64\); config\.json asks for \(300, 64\)"),
        ("heads", r"k_proj\.weight is \(\d+,\); config\.json asks for \(\d+,\)"),
        ("index", r"index\.json: can't be read \(No such file"),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_a_token_is_computed(damaged, kind, message):
    with pytest.raises(CheckpointError, match=message):
        build(damaged(kind))


def test_a_checkpoint_that_lacks_a_tensor_is_refused(quantized, tmp_path):
    tied = Path(shutil.copytree(quantized(EXACT, tie_word_embeddings=True), tmp_path / "copy"))
    set_config(tied, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing; config\.json asks for"):
        build(tied)
