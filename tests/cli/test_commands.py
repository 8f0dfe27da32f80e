"""The command line answers, and refuses in one line."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import MixtralForCausalLM
from typer.core import TyperGroup
from typer.main import get_command

import mixoff
from mixoff.cli import app
from mixoff.cli.options import MIXTRAL
from mixoff.cli.printable import printable
from support.command_line import TEMPLATE, chat_output, invoke, refusal
from support.hub_fixtures import process_environment
from support.hub_server import Hub
from support.tiers import tiered

RELEASED_LAYOUT = Path(__file__).parents[1] / "data" / "released-layout-tiny"
RELEASED = "lavawolfiee/Mixtral-8x7B-Instruct-v0.1-offloading-demo"
OFFLOAD = ("--offload-per-layer", "2")


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


def test_demo_has_the_options_of_chat_but_for_names() -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    names = {name: {param.name for param in group.commands[name].params} for name in group.commands}
    assert names["chat"] - names["demo"] == {"model_name", "quantized_model_name"}
    assert not names["demo"] - names["chat"]


def test_the_version_is_the_packages_own() -> None:
    assert invoke("--version").stdout == f"mixoff {mixoff.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [["chat", "--top-p", "2"], ["info"], ["nonsense"], ["quantize", ".", "x", "--experts", 5]],
    ids=["value", "missing argument", "command", "choice"],
)
def test_an_invalid_command_line_exits_with_2(words: list[str]) -> None:
    assert invoke(*words).exit_code == 2


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
            ["eval", "{whole}", "--text", __file__, *OFFLOAD, "--against", "/none"],
            "/none",
            "no such f",
        ),
        (
            ["eval", "{whole}", "--text", __file__, *OFFLOAD, "--against", "{whole}"],
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
def test_an_unusable_argument_is_refused_in_one_line(
    words: list[str], value: str, way_out: str, source: Path, checkpoint: Path
) -> None:
    names = {"source": source, "whole": checkpoint}
    line = refusal(invoke(*(word.format(**names) for word in words)))
    assert value.format(**names) in line
    assert way_out in line


@pytest.mark.usefixtures("offline")
def test_without_a_network_a_name_on_the_hub_is_refused_in_one_line() -> None:
    line = refusal(invoke("chat", "--quantized-model-name", "somebody/something"))
    assert "somebody/something" in line
    assert "give a folder" in line


@pytest.mark.usefixtures("offline")
def test_without_the_hub_the_default_checkpoint_is_refused_in_one_line() -> None:
    line = refusal(invoke("chat"))
    assert RELEASED in line
    assert "offline mode is on (HF_HUB_OFFLINE)" in line
    assert "give a folder" in line


def test_a_checkpoint_in_the_released_layout_is_fetched_and_read(hub: Hub) -> None:
    commit = hub.add(RELEASED, RELEASED_LAYOUT)
    facts = json.loads(invoke("info", RELEASED, "--json").stdout)["checkpoint"]
    assert facts["format"] == "mixtral-offloading"
    assert (facts["repository"], facts["revision"]) == (RELEASED, commit)


def test_info_shows_a_person_which_commit_it_is(hub: Hub) -> None:
    commit = hub.add(RELEASED, RELEASED_LAYOUT)
    output = re.sub(r"[\s│]", "", invoke("info", RELEASED).stdout)
    assert f"@{commit[:8]}" in output


def test_a_model_that_is_not_quantized_is_refused_without_fetching_its_weights(
    hub: Hub, source: Path
) -> None:
    commit = hub.add("somebody/original", source)
    line = refusal(invoke("info", "somebody/original"))
    assert f"somebody/original@{commit[:8]}: no mixoff checkpoint (it isn't quantized)" in line
    assert not hub.sent["model.safetensors"]


def test_a_checkpoint_on_the_hub_is_fetched_and_read(hub: Hub, checkpoint: Path) -> None:
    hub.add("somebody/quantized", checkpoint)
    result = invoke("info", "somebody/quantized", "--offload-per-layer", 1, "--json")
    folder = Path(json.loads(result.stdout)["checkpoint"]["folder"])
    assert (folder / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()


def chat_in_this_process(hub: Hub, home: Path, *words: str) -> str:
    result = invoke("chat", *words)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def chat_in_another_process(hub: Hub, home: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mixoff", "chat", *words],
        env=process_environment(hub, home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "chat",
    tiered([chat_in_this_process, chat_in_another_process], fast=[chat_in_this_process]),
)
def test_the_default_checkpoint_chats_from_the_hub(
    hub: Hub, source: Path, tmp_path: Path, chat: Callable[..., str]
) -> None:
    layout = {path.name: path.read_bytes() for path in RELEASED_LAYOUT.iterdir()}
    tokenizer = {path.name: path.read_bytes() for path in source.glob("*token*")}
    hub.add_files(RELEASED, {n: c for n, c in layout.items() if not n.startswith("reference")})
    hub.add_files(MIXTRAL, tokenizer | {"chat_template.jinja": TEMPLATE.encode()})
    words = ("--prompt", "a", "--max-new-tokens", "3", "--temperature", "0", "--json")
    assert json.loads(chat(hub, tmp_path, *words))["statistics"]["new_tokens"] == 3


@pytest.mark.usefixtures("offline")
def test_a_checkpoint_without_a_tokenizer_is_refused_with_the_option_for_one(
    checkpoint: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("*token*"))
    options = ("--quantized-model-name", bare, "--offload-per-layer", 1)
    line = refusal(invoke("chat", *options, "--model-name", "somebody/tokens"))
    assert "somebody/tokens" in line
    assert "--model-name" in line


def test_a_refusal_shows_no_escape_sequence_of_a_name() -> None:
    line = refusal(invoke("info", "/no\x1b[2J/\u202efolder\n"))
    assert line == "mixoff: /no[2J/folder : no such folder.\n"


def test_an_interrupt_outside_of_a_chat_ends_with_one_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mixoff.models.build.AutoModelForCausalLM.from_pretrained", interrupted)
    words = ("--quantized-model-name", checkpoint, "--offload-per-layer", 1, "--prompt", "Hello")
    result = invoke("chat", *words)
    assert (result.exit_code, result.stderr) == (130, "mixoff: interrupted\n")


def test_a_closed_pipe_prints_no_error() -> None:
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
    output = chat_output(checkpoint, piped="Hello!\n\n   \nWho are you?\n")
    assert output.count("hits ") == 2
    for word in ("hits", "misses", "hit rate", "bytes read", "tokens/s"):
        assert output.count(f"{word} ") >= 2
    assert output == printable(output)


def test_no_input_is_answered_with_nothing(checkpoint: Path) -> None:
    assert chat_output(checkpoint, piped="\n \n") == ""


def test_a_prompt_is_answered_and_the_input_ignored(checkpoint: Path) -> None:
    assert chat_output(checkpoint, "--prompt", "Hello!", piped="more\n").count("hits ") == 1


def test_the_demo_answers_without_a_checkpoint_being_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixoff.known_models.first_checkpoint", lambda *_: checkpoint)
    words = ("demo", "--offload-per-layer", 2, "--max-new-tokens", 4, "--device", "cpu")
    assert "hits " in invoke(*words, piped="Hello! Who are you?\n").stdout


def test_a_prompt_that_isnt_utf_8_is_answered(checkpoint: Path) -> None:
    assert "hits " in chat_output(checkpoint, "--prompt", os.fsdecode(b"caf\xe9"))


def test_the_same_seed_gives_the_same_reply(checkpoint: Path) -> None:
    drawn = ("--prompt", "Hello!", "--temperature", 2, "--json", "--max-new-tokens", 16, "--seed")
    replies = [json.loads(chat_output(checkpoint, *drawn, seed))["reply"] for seed in (1, 1, 2)]
    assert replies[0] == replies[1] != replies[2]


def test_json_is_one_object_a_reply_and_nothing_else(checkpoint: Path) -> None:
    output = chat_output(checkpoint, "--json", piped="Hello!\nWho are you?\n")
    replies = [json.loads(line) for line in output.splitlines()]
    assert [reply["prompt"] for reply in replies] == ["Hello!", "Who are you?"]
    for reply in replies:
        cache = reply["statistics"]["cache"]
        assert cache["hits"] == sum(cache["hits_per_layer"])
        assert cache["misses"] == sum(cache["misses_per_layer"])
        assert len(cache["hit_rate_per_layer"]) == 2
        assert reply["statistics"]["new_tokens"] <= 4


def test_json_holds_the_reply_as_it_is_and_stays_ascii(checkpoint: Path) -> None:
    output = chat_output(checkpoint, "--json", "--prompt", "\u202eHi\x7f", "--max-new-tokens", 64)
    assert json.loads(output)["prompt"] == "\u202eHi\x7f"
    assert output == printable(output)
    assert output.isascii()


# ---- info


def test_the_memory_in_all_is_the_sum_of_its_parts(checkpoint: Path) -> None:
    sizes = ("--offload-per-layer", 3, "--host-memory", "200 KB", "--device", "cpu")
    run = json.loads(invoke("info", checkpoint, *sizes, "--json").stdout)["run"]
    tiers = ("slots", "staging", "non_expert", "kv_cache", "workspace", "host", "bounce")
    assert run["total"] == sum(run[tier] for tier in tiers)
    assert run["total"] == run["device_nbytes"] + run["host_nbytes"]
    assert run["slots_per_layer"] == 1
    experts = [run[f"experts_on_{tier}"] for tier in ("device", "host", "disk")]
    assert experts == [2, 2, 4]
    assert (run["host_tier"], run["io"]) == ("exclusive", "buffered")


def test_a_budget_for_the_device_replaces_the_default_number_of_experts_outside(
    checkpoint: Path,
) -> None:
    sizes = ("--device-memory", "1GiB", "--device", "cpu")
    run = json.loads(invoke("info", checkpoint, *sizes, "--json").stdout)["run"]
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
    result = invoke(command, *words, *budgets)
    assert (result.exit_code, result.stderr) == (0, "")
    line = refusal(invoke(command, *words, "--device-memory", "64 KB", "--device", "cpu"))
    assert "device_memory='64 KB'" in line
    assert "bytes or more" in line
    both = ("--device-memory", "1GiB", "--offload-per-layer", 4)
    assert "give one" in refusal(invoke(command, *words, *both))


def test_info_counts_the_parameters_of_the_model(checkpoint: Path, source: Path) -> None:
    output = invoke("info", checkpoint, "--offload-per-layer", 1, "--json").stdout
    facts = json.loads(output)["checkpoint"]
    model = MixtralForCausalLM.from_pretrained(source)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["attention_bits_per_weight"] == facts["experts_bits_per_weight"] == 32


def test_info_shows_a_person_the_checkpoint_and_the_run(checkpoint: Path) -> None:
    result = invoke("info", checkpoint, "--offload-per-layer", 1)
    assert result.exit_code == 0
    for words in ("mixtral", "4 in each layer", "KV cache", "memory in all", "32.00 bits a weight"):
        assert words in result.stdout


def test_info_shows_experts_in_each_memory_and_how_the_disk_is_read(checkpoint: Path) -> None:
    sizes = ("--offload-per-layer", 3, "--host-memory", "200 KB")
    on_cpu = invoke("info", checkpoint, *sizes, "--device", "cpu").stdout
    for words in ("A run on cpu", "staging, 4 experts", "exclusive", "on disk only", "buffered: a"):
        assert words in on_cpu
    on_gpu = invoke("info", checkpoint, *sizes, "--device", "cuda").stdout
    for words in ("A run on cuda", "the device in all", "host buffers for transfers", "pinned"):
        assert words in on_gpu
