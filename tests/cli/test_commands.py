"""The command line answers, refuses in one line, and never lets a text steer the terminal."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner, Result

import mixoff
from mixoff.cache.stats import CacheStats
from mixoff.chat.reply import ReplyStats
from mixoff.cli import app
from mixoff.cli.options import MIXTRAL
from mixoff.cli.printable import one_line, printable
from mixoff.cli.report import statistics_line, statistics_object
from mixoff.cli.terminal import Session
from mixoff.errors import ConfigError, MixoffError
from support.hub_fixtures import process_environment
from support.hub_server import Hub

RELEASED_LAYOUT = Path(__file__).parents[1] / "data" / "released-layout-tiny"
RELEASED = "lavawolfiee/Mixtral-8x7B-Instruct-v0.1-offloading-demo"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
OUTSIDE = ("--offload-per-layer", "2")
ESCAPES = (
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x1b]52;c;cm0gLXJm\x1b\\",
    "\x1b]8;;http://example.org\x07link\x1b]8;;\x07",
    "\x1bPdcs\x1b\\",
    "\x1b_apc\x1b\\",
    "\x9b2Jcleared",
    "safe\rEVIL\b\b",
    "\u202egnp.exe",
    "a\U000e0041\U000e007fb",
)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mixtral in Hugging Face's form, with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("cli") / "source"
    config = MixtralConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        sliding_window=None,
    )
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["[INST] Hello! Who are you? [/INST]"] * 4, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(source: Path) -> Path:
    whole = mixoff.quantization.Unquantized("float32")
    scheme = mixoff.Scheme(attention=whole, experts=whole)
    return mixoff.quantize_checkpoint(source, source.parent / "whole", scheme, progress=False)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def mixoff_says(*words: object, piped: str | bytes = "") -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=piped)


def answers(checkpoint: Path, *words: object, piped: str | bytes = "") -> str:
    options = ("--quantized-model-name", checkpoint, "--offload-per-layer", 2)
    limits = ("--max-new-tokens", 4, "--temperature", 0, "--device", "cpu")
    result = mixoff_says("chat", *options, *limits, *words, piped=piped)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def refusal(result: Result) -> str:
    """Return the one line that a refused command leaves behind."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("mixoff: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    return result.stderr


# ---- options


def test_help_and_completion_import_nothing_slow() -> None:
    code = """
import os, sys
from mixoff.cli import main
def run(*words):
    sys.argv = ["mixoff", *words]
    try:
        main()
    except SystemExit:
        pass
run("--help")
run("chat", "-h")
os.environ |= {"COMP_WORDS": "mixoff chat --policy l", "COMP_CWORD": "3"}
os.environ |= {"_MIXOFF_COMPLETE": "complete_bash"}
run()
print("slow:", {"torch", "transformers", "pandas", "matplotlib"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "quantize" in done.stdout
    assert "--quantized-model-name" in done.stdout
    assert done.stdout.endswith("lru\nlfu\nslow: set()\n")


def test_chat_has_the_options_and_defaults_of_mixtral_offloading() -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    defaults = {param.opts[0]: param.default for param in group.commands["chat"].params}
    assert (
        defaults.items()
        >= {
            "--model-name": "mistralai/Mixtral-8x7B-Instruct-v0.1",
            "--quantized-model-name": RELEASED,
            "--offload-per-layer": 5,
            "--temperature": 0.9,
            "--top-p": 0.9,
            "--max-new-tokens": 512,
        }.items()
    )
    shared = {param.opts[0] for param in group.params}
    assert {"--install-completion", "--show-completion"} <= shared


def test_every_option_of_demo_is_one_of_chat() -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    names = {name: {param.name for param in group.commands[name].params} for name in group.commands}
    assert names["chat"] - names["demo"] == {"model_name", "quantized_model_name"}
    assert not names["demo"] - names["chat"]


def test_the_version_is_the_packages_own() -> None:
    assert mixoff_says("--version").stdout == f"mixoff {mixoff.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [["chat", "--top-p", "2"], ["info"], ["nonsense"], ["quantize", ".", "x", "--experts", 5]],
)
def test_what_no_command_understands_exits_with_2(words: list[str]) -> None:
    assert mixoff_says(*words).exit_code == 2


# ---- refusals


@pytest.mark.parametrize(
    ("words", "value", "way_out"),
    [
        (["info", "/nowhere/at/all"], "/nowhere/at/all", "no such folder"),
        (["chat", "--quantized-model-name", "{source}"], "{source}", "mixoff.quantize_checkpoint"),
        (["chat", "--quantized-model-name", "{whole}"], "offload_per_layer=5", "0 to 4"),
        (["info", "{whole}", "--offload-per-layer", "5"], "offload_per_layer=5", "0 to 4"),
        (["info", "{whole}", "--offload-per-layer", "-1"], "offload_per_layer=-1", "from 0"),
        (["info", "{whole}", "--host-memory", "lots"], "'lots'", "10GiB"),
        (["info", "{whole}", "--device-memory", "lots"], "'lots'", "10GiB"),
        (["chat", "--policy", "oracle"], "policy='oracle'", "lru"),
        (
            ["demo", "--miss", "compute", "--device", "cpu"],
            "miss='compute'",
            "give 'fetch', or device='cuda'",
        ),
        (["eval", "{whole}", "--text", "/no/text"], "/no/text", "give a text file"),
        (["eval", "{whole}", "--text", "{whole}"], "{whole}", "give a text file"),
        (
            ["eval", "{whole}", "--text", __file__, *OUTSIDE, "--against", "/none"],
            "/none",
            "no such f",
        ),
        (
            ["eval", "{whole}", "--text", __file__, *OUTSIDE, "--against", "{whole}"],
            "{whole}",
            "no unquantized Mixtral",
        ),
        (["quantize", "{source}", "{whole}"], "{whole}", "give a new folder"),
        (["quantize", "/nowhere", "{whole}/new"], "/nowhere", "no such folder"),
        (["quantize", "{source}", "{source}-7", "--layer-experts", "0:5"], "'0:5'", "as 0:4,31"),
        (["quantize", "{source}", "{source}-7", "--layer-experts", "9:4"], "layer 9", "0 to 1"),
        (["quantize", "{source}", "{source}-7", "--delete-shards"], "{source}", "leave --delete"),
        (["quantize", "{source}", "{source}-7", "--experts-group-size", "7"], "=7", "divisor"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    words: list[str], value: str, way_out: str, source: Path, checkpoint: Path
) -> None:
    names = {"source": source, "whole": checkpoint}
    line = refusal(mixoff_says(*(word.format(**names) for word in words)))
    assert value.format(**names) in line
    assert way_out in line


@pytest.mark.usefixtures("offline")
def test_without_a_network_a_name_on_the_hub_is_refused_in_one_line() -> None:
    line = refusal(mixoff_says("chat", "--quantized-model-name", "somebody/something"))
    assert "somebody/something" in line
    assert "give a folder" in line


@pytest.mark.usefixtures("offline")
def test_without_the_hub_the_default_checkpoint_is_refused_in_one_line() -> None:
    line = refusal(mixoff_says("chat"))
    assert RELEASED in line
    assert "offline mode is on (HF_HUB_OFFLINE)" in line
    assert "give a folder" in line


def test_a_checkpoint_in_the_released_layout_is_fetched_and_read(hub: Hub) -> None:
    commit = hub.add(RELEASED, RELEASED_LAYOUT)
    facts = json.loads(mixoff_says("info", RELEASED, "--json").stdout)["checkpoint"]
    assert facts["format"] == "mixtral-offloading"
    assert (facts["repository"], facts["revision"]) == (RELEASED, commit)


def test_info_shows_a_person_which_commit_it_is(hub: Hub) -> None:
    commit = hub.add(RELEASED, RELEASED_LAYOUT)
    shown = re.sub(r"[\s│]", "", mixoff_says("info", RELEASED).stdout)
    assert f"@{commit[:8]}" in shown


def test_a_model_that_is_not_quantized_is_refused_without_fetching_its_weights(
    hub: Hub, source: Path
) -> None:
    commit = hub.add("somebody/original", source)
    line = refusal(mixoff_says("info", "somebody/original"))
    assert f"somebody/original@{commit[:8]}: no mixoff checkpoint (it isn't quantized)" in line
    assert not hub.sent["model.safetensors"]


def test_a_checkpoint_on_the_hub_is_fetched_and_read(hub: Hub, checkpoint: Path) -> None:
    hub.add("somebody/quantized", checkpoint)
    result = mixoff_says("info", "somebody/quantized", "--offload-per-layer", 1, "--json")
    folder = Path(json.loads(result.stdout)["checkpoint"]["folder"])
    assert (folder / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()


def test_the_default_checkpoint_chats_from_the_hub(hub: Hub, source: Path, tmp_path: Path) -> None:
    layout = {path.name: path.read_bytes() for path in RELEASED_LAYOUT.iterdir()}
    tokenizer = {path.name: path.read_bytes() for path in source.glob("*token*")}
    hub.add_files(RELEASED, {n: c for n, c in layout.items() if not n.startswith("reference")})
    hub.add_files(MIXTRAL, tokenizer | {"chat_template.jinja": TEMPLATE.encode()})
    words = ["chat", "--prompt", "a", "--max-new-tokens", "3", "--temperature", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "mixoff", *words, "--json"],
        env=process_environment(hub, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["statistics"]["new_tokens"] == 3


@pytest.mark.usefixtures("offline")
def test_a_checkpoint_without_tokenizer_says_which_option_names_one(
    checkpoint: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("*token*"))
    options = ("--quantized-model-name", bare, "--offload-per-layer", 1)
    line = refusal(mixoff_says("chat", *options, "--model-name", "somebody/tokens"))
    assert "somebody/tokens" in line
    assert "--model-name" in line


def test_a_refusal_shows_no_escape_sequence_of_a_name() -> None:
    line = refusal(mixoff_says("info", "/no\x1b[2J/\u202efolder\n"))
    assert line == "mixoff: /no[2J/folder : no such folder.\n"


def test_an_interrupt_outside_of_a_chat_ends_with_one_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mixoff.models.build.AutoModelForCausalLM.from_pretrained", interrupted)
    words = ("--quantized-model-name", checkpoint, "--offload-per-layer", 1, "--prompt", "Hello")
    result = mixoff_says("chat", *words)
    assert (result.exit_code, result.stderr) == (130, "mixoff: interrupted\n")


def test_a_closed_pipe_is_no_error_to_talk_about() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "mixoff", "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert done.stderr == ""


# ---- answers


def test_piped_input_is_answered_once_a_line(checkpoint: Path) -> None:
    said = answers(checkpoint, piped="Hello!\n\n   \nWho are you?\n")
    assert said.count("hits ") == 2
    for word in ("hits", "misses", "hit rate", "bytes read", "tokens/s"):
        assert said.count(f"{word} ") >= 2
    assert said == printable(said)


def test_no_input_is_answered_with_nothing(checkpoint: Path) -> None:
    assert answers(checkpoint, piped="\n \n") == ""


def test_a_prompt_is_answered_and_the_input_left_alone(checkpoint: Path) -> None:
    assert answers(checkpoint, "--prompt", "Hello!", piped="more\n").count("hits ") == 1


def test_the_demo_answers_without_a_checkpoint_being_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixoff.known_models.first_checkpoint", lambda *_: checkpoint)
    words = ("demo", "--offload-per-layer", 2, "--max-new-tokens", 4, "--device", "cpu")
    assert "hits " in mixoff_says(*words, piped="Hello! Who are you?\n").stdout


def test_a_prompt_that_is_no_utf_8_is_answered(checkpoint: Path) -> None:
    assert "hits " in answers(checkpoint, "--prompt", os.fsdecode(b"caf\xe9"))


def test_the_same_seed_gives_the_same_reply(checkpoint: Path) -> None:
    drawn = ("--prompt", "Hello!", "--temperature", 2, "--json", "--max-new-tokens", 16, "--seed")
    replies = [json.loads(answers(checkpoint, *drawn, seed))["reply"] for seed in (1, 1, 2)]
    assert replies[0] == replies[1] != replies[2]


def test_json_is_one_object_a_reply_and_nothing_else(checkpoint: Path) -> None:
    said = answers(checkpoint, "--json", piped="Hello!\nWho are you?\n")
    replies = [json.loads(line) for line in said.splitlines()]
    assert [reply["prompt"] for reply in replies] == ["Hello!", "Who are you?"]
    for reply in replies:
        cache = reply["statistics"]["cache"]
        assert cache["hits"] == sum(cache["hits_per_layer"])
        assert cache["misses"] == sum(cache["misses_per_layer"])
        assert len(cache["hit_rate_per_layer"]) == 2
        assert reply["statistics"]["new_tokens"] <= 4


def test_json_holds_the_reply_as_it_is_and_stays_ascii(checkpoint: Path) -> None:
    said = answers(checkpoint, "--json", "--prompt", "\u202eHi\x7f", "--max-new-tokens", 64)
    assert json.loads(said)["prompt"] == "\u202eHi\x7f"
    assert said == printable(said)
    assert said.isascii()


def test_what_was_not_measured_is_said_to_be_unknown() -> None:
    nothing = ReplyStats(5, 0, 0, 0.5, 0.5, "stopped", CacheStats((0, 0), (0, 0), 0), 0, None)
    line = statistics_line(nothing)
    assert "hit rate unknown" in line
    assert "tokens/s unknown" in line
    assert "first token" not in line
    facts = statistics_object(nothing)
    assert facts["tokens_per_second"] is None
    assert facts["cache"]["hit_rate"] is None
    json.dumps(facts, allow_nan=False)


# ---- info, eval, quantize


def test_the_memory_in_all_is_the_sum_of_its_parts(checkpoint: Path) -> None:
    sizes = ("--offload-per-layer", 3, "--host-memory", "200 KB", "--device", "cpu")
    run = json.loads(mixoff_says("info", checkpoint, *sizes, "--json").stdout)["run"]
    tiers = ("slots", "staging", "non_expert", "kv_cache", "workspace", "host", "bounce")
    assert run["total"] == sum(run[tier] for tier in tiers)
    assert run["total"] == run["device_nbytes"] + run["host_nbytes"]
    assert run["slots_per_layer"] == 1
    found = [run[f"experts_on_{tier}"] for tier in ("device", "host", "disk")]
    assert found == [2, 2, 4]
    assert (run["host_tier"], run["io"]) == ("exclusive", "buffered")


def test_a_budget_for_the_device_replaces_the_default_number_of_experts_outside(
    checkpoint: Path,
) -> None:
    sizes = ("--device-memory", "1GiB", "--device", "cpu")
    run = json.loads(mixoff_says("info", checkpoint, *sizes, "--json").stdout)["run"]
    assert (run["slots_per_layer"], run["experts_on_disk"]) == (4, 0)


@pytest.mark.parametrize("command", ["info", "chat", "demo", "eval"])
def test_every_command_that_runs_takes_budgets(
    command: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixoff.known_models.first_checkpoint", lambda *_: checkpoint)
    (tmp_path / "text.txt").write_text("Hello! Who are you? " * 4)
    limits = ("--prompt", "Hello!", "--max-new-tokens", 2)
    words = {
        "info": (checkpoint,),
        "chat": ("--quantized-model-name", checkpoint, *limits),
        "demo": limits,
        "eval": (checkpoint, "--text", tmp_path / "text.txt"),
    }[command]
    budgets = ("--device-memory", "auto", "--host-memory", "auto", "--device", "cpu")
    result = mixoff_says(command, *words, *budgets)
    assert (result.exit_code, result.stderr) == (0, "")
    line = refusal(mixoff_says(command, *words, "--device-memory", "64 KB", "--device", "cpu"))
    assert "device_memory='64 KB'" in line
    assert "bytes or more" in line
    both = ("--device-memory", "1GiB", "--offload-per-layer", 4)
    assert "give one" in refusal(mixoff_says(command, *words, *both))


def test_info_counts_the_parameters_of_the_model(checkpoint: Path, source: Path) -> None:
    said = json.loads(mixoff_says("info", checkpoint, "--offload-per-layer", 1, "--json").stdout)
    facts = said["checkpoint"]
    model = MixtralForCausalLM.from_pretrained(source)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["attention_bits_per_weight"] == facts["experts_bits_per_weight"] == 32


def test_info_shows_a_person_all_it_knows(checkpoint: Path) -> None:
    result = mixoff_says("info", checkpoint, "--offload-per-layer", 1)
    assert result.exit_code == 0
    for words in ("mixtral", "4 in each layer", "KV cache", "memory in all", "32.00 bits a weight"):
        assert words in result.stdout


def test_info_shows_where_experts_are_found_and_how_the_disk_is_read(checkpoint: Path) -> None:
    sizes = ("--offload-per-layer", 3, "--host-memory", "200 KB")
    on_cpu = mixoff_says("info", checkpoint, *sizes, "--device", "cpu").stdout
    for words in ("A run on cpu", "staging, 4 experts", "exclusive", "on disk only", "buffered: a"):
        assert words in on_cpu
    on_gpu = mixoff_says("info", checkpoint, *sizes, "--device", "cuda").stdout
    for words in ("A run on cuda", "the device in all", "on the way to the device", "pinned"):
        assert words in on_gpu


def test_eval_prints_the_loss_with_four_decimals(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hello! Who are you? " * 4)
    words = ("eval", checkpoint, "--text", text, "--offload-per-layer", 2)
    facts = json.loads(mixoff_says(*words, "--json").stdout)
    assert f"loss {facts['loss']:.4f} nats/token" in mixoff_says(*words).stdout


def test_eval_against_the_original_tells_the_divergence_and_both_losses(
    source: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hello! Who are you? " * 4)
    mixoff_says("quantize", source, tmp_path / "small", "--experts", 2, "--attention", 4)
    words = ("eval", tmp_path / "small", "--text", text, *OUTSIDE, "--tokens", 20)
    result = mixoff_says(*words, "--against", source, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert facts["tokens"] == 20
    assert facts["kl_mean"] > 0
    assert facts["reference_nbytes"] > 0
    alone = json.loads(mixoff_says(*words, "--json").stdout)
    assert facts["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    lines = mixoff_says(*words, "--against", source).stdout.splitlines()
    assert lines[0].startswith(f"loss {facts['loss']:.4f} nats/token")
    assert lines[1].startswith(f"against {source}, loss {facts['unquantized_loss']:.4f}")
    assert f"KL divergence {facts['kl_mean']:.5f} nats/token" in lines[1]


def test_eval_against_the_original_of_an_exact_copy_finds_no_divergence(
    checkpoint: Path, source: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hello! Who are you? " * 4)
    words = ("eval", checkpoint, "--text", text, *OUTSIDE, "--against", source)
    assert "same most likely token 100.0 %" in mixoff_says(*words).stdout


def test_eval_of_one_token_knows_no_error(checkpoint: Path, source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hello!")
    words = ("eval", checkpoint, "--text", text, *OUTSIDE, "--tokens", 1)
    against = ("--against", source)
    assert json.loads(mixoff_says(*words, *against, "--json").stdout)["kl_standard_error"] is None
    assert "standard error unknown" in mixoff_says(*words, *against).stdout


def test_eval_against_another_model_is_refused_by_its_sizes(
    checkpoint: Path, tiny_mixtral: Callable[..., Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hello! Who are you? " * 4)
    other = tiny_mixtral(experts=2)
    words = ("eval", checkpoint, "--text", text, *OUTSIDE, "--against", other)
    line = refusal(mixoff_says(*words))
    assert str(other) in line
    assert "num_local_experts is 2 there and 4 here" in line


def test_quantize_makes_a_checkpoint_that_chat_reads(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "small"
    bits = ("--attention", 8, "--experts", 2)
    result = mixoff_says("quantize", source, target, *bits, "--attention-group-size", 32)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(str(target))
    scheme = json.loads((target / "config.json").read_text())["quantization_config"]
    hqq = {"method": "hqq", "nbits": 2, "group_size": 16, "scale_nbits": 8}
    assert scheme["experts"] == hqq
    assert scheme["attention"] == hqq | {"nbits": 8, "group_size": 32, "scale_nbits": 16}
    assert "hits " in answers(target, "--prompt", "Hello!")


def test_quantize_to_none_keeps_the_type_of_the_weights(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "same"
    mixoff_says("quantize", source, target, "--attention", "none", "--experts", "none")
    scheme = json.loads((target / "config.json").read_text())["quantization_config"]
    assert scheme["attention"] == {"method": "none", "dtype": "float32"}


def quantization_settings(target: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((target / "config.json").read_text())
    return settings["quantization_config"]


def test_quantize_stores_single_layers_in_bits_of_their_own(source: Path, tmp_path: Path) -> None:
    layers = ("--layer-experts", "0:4,1:none", "--group-size", 32)
    result = mixoff_says("quantize", source, tmp_path / "model", *layers)
    assert result.exit_code == 0, result.stderr
    found = quantization_settings(tmp_path / "model")
    four = {"method": "hqq", "nbits": 4, "group_size": 32, "scale_nbits": 16}
    assert found["layer_experts"] == {"0": four, "1": {"method": "none", "dtype": "float32"}}
    assert (found["attention"]["group_size"], found["experts"]["group_size"]) == (32, 32)


def test_quantize_tells_size_disk_and_memory_before_it_starts(source: Path, tmp_path: Path) -> None:
    result = mixoff_says("quantize", source, tmp_path / "model")
    for told in (str(source), "bits a weight", "are free there", "memory: about"):
        assert told in result.stderr


def test_quantize_without_bits_keeps_the_codes_of_the_released_layout(tmp_path: Path) -> None:
    mixoff_says("quantize", RELEASED_LAYOUT, tmp_path / "model")
    assert quantization_settings(tmp_path / "model")["experts"]["method"] == "hqq-axis0"


# ---- what reaches the terminal


def test_no_character_that_steers_a_terminal_is_printable() -> None:
    controls = {*range(0x20), 0x7F, *range(0x80, 0xA0)} - {0x09, 0x0A}
    order = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x2070)}
    steering = controls | order | {*range(0xE0000, 0xE0080)}  # and tags
    scalars = (*range(0xD800), *range(0xE000, 0x110000))
    kept = "".join(chr(code) for code in scalars if code not in steering)
    same = printable("".join(map(chr, scalars))) == kept  # too long to be shown
    assert same
    assert len(scalars) == 1_112_064


def test_half_a_character_is_not_printable() -> None:
    assert printable("a\ud83db") == "ab"


@pytest.mark.parametrize("text", ESCAPES)
def test_an_escape_sequence_is_broken_wherever_the_stream_is_cut(text: str) -> None:
    whole = printable(text)
    assert not set(whole) & set("\x1b\x9b\x07\x08\r\u202e\U000e0041")
    for cut in range(len(text)):
        assert printable(text[:cut]) + printable(text[cut:]) == whole


def test_one_line_is_one_line() -> None:
    assert one_line("a\n b\r\n\tc\x1b") == "a b c"


# ---- a chat at a terminal


class FakeCache:
    """A cache that has done something."""

    num_experts, slots_per_layer, device = 4, 2, "cpu"

    def stats(self) -> CacheStats:
        return CacheStats((3, 0), (1, 4), 5000)


class FakeChat:
    """A chat whose replies do what a test says, until they are stopped."""

    def __init__(self, *pieces: str | Exception | int) -> None:
        self.pieces = pieces
        self.sent: list[str] = []
        self.resets = 0
        self.stopped = False
        self.last = ReplyStats(5, 5, 3, 1.0, 0.5, "stop", FakeCache().stats(), 0, None)

    def send(self, text: str) -> Iterator[str]:
        self.sent.append(text)
        self.stopped = False
        for piece in self.pieces:
            if self.stopped:
                return
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, int):
                for _ in range(piece):
                    signal.raise_signal(signal.SIGINT)
            else:
                yield piece

    def stop(self) -> None:
        self.stopped = True

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Somebody who types lines, then Ctrl-D, and what they see."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background

    def typed(chat: Any, *lines: str | BaseException) -> str:
        left = list(lines)

        def type_line(_: str) -> str:
            line = left.pop(0) if left else EOFError()
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", type_line)
        before = signal.getsignal(signal.SIGINT)
        chat.cache = FakeCache()
        Session(chat, "the\x1b[2Jmodel").run()
        assert signal.getsignal(signal.SIGINT) is before
        return capsys.readouterr().out

    yield typed
    signal.signal(signal.SIGINT, inherited)


def test_a_session_answers_each_line_and_says_what_the_cache_did(
    at_a_terminal: Callable[..., str],
) -> None:
    chat = FakeChat(" Good ", "day\x1b[31m.")
    seen = at_a_terminal(chat, "Hello!", "", "Who are you?")
    assert chat.sent == ["Hello!", "Who are you?"]
    assert seen.count("\nGood day[31m.\nhits 3, misses 5, hit rate 37.5 %") == 2
    assert "the[2Jmodel: 2 layers of 4 experts, 2 of each layer in slots on cpu" in seen
    assert "\x1b" not in seen


def test_ctrl_c_stops_the_reply_and_keeps_the_chat(at_a_terminal: Callable[..., str]) -> None:
    chat = FakeChat("begun", 1, "never seen")
    seen = at_a_terminal(chat, "one", "two")
    assert chat.sent == ["one", "two"]
    assert seen.count("begun") == 2
    assert "never seen" not in seen


def test_ctrl_c_while_a_reply_is_stopping_leaves(at_a_terminal: Callable[..., str]) -> None:
    chat = FakeChat("begun", 2, "never seen")
    at_a_terminal(chat, "one", "two")
    assert chat.sent == ["one"]


@pytest.mark.parametrize("leave", ["/exit", EOFError(), KeyboardInterrupt()])
def test_there_are_three_ways_to_leave(
    leave: str | BaseException, at_a_terminal: Callable[..., str]
) -> None:
    chat = FakeChat("day")
    at_a_terminal(chat, "one", leave, "two")
    assert chat.sent == ["one"]


def test_commands_are_obeyed_and_not_sent(at_a_terminal: Callable[..., str]) -> None:
    chat = FakeChat("day")
    seen = at_a_terminal(chat, "/reset", "/stats", "/nonsense")
    assert (chat.sent, chat.resets) == ([], 1)
    assert "75.0 %" in seen
    assert "/nonsense: no such command" in seen
    assert "forget the conversation" in seen


@pytest.mark.parametrize("error", [ConfigError("too long"), MixoffError("damaged")])
def test_a_reply_that_is_refused_does_not_end_the_chat(
    error: MixoffError, at_a_terminal: Callable[..., str]
) -> None:
    chat = FakeChat("begun", error)
    seen = at_a_terminal(chat, "one", "two")
    assert chat.sent == ["one", "two"]
    assert seen.count(f"begun\n{error}\n") == 2
