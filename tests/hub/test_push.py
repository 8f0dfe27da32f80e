"""An uploaded checkpoint is the checkpoint, and its card says what is known and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixoff._version import __version__
from mixoff.cli import app
from mixoff.errors import CheckpointError, ConfigError
from mixoff.hub import model_card, named_checkpoint, push_to_hub
from mixoff.units import format_nbytes
from support.hub_server import Hub

NAME = "somebody/uploaded"
RELEASED_LAYOUT = Path(__file__).parents[1] / "data" / "released-layout-tiny"

# The client uploads in a way that its httpx deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<:DeprecationWarning")


@pytest.fixture
def checkpoint(quantized: Callable[..., Path]) -> Path:
    return quantized()


@pytest.fixture
def signed_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


def uploaded(hub: Hub) -> dict[str, bytes]:
    repo = hub.repos[NAME]
    return repo.commits[repo.refs["main"]]


# ---- uploads


def test_what_was_uploaded_comes_back_as_it_was(signed_in: Hub, checkpoint: Path) -> None:
    push_to_hub(checkpoint, NAME)
    folder = named_checkpoint(NAME).folder
    expected = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


def test_the_address_is_that_of_the_commit(signed_in: Hub, checkpoint: Path) -> None:
    address = push_to_hub(checkpoint, NAME)
    assert address == f"{signed_in.url}/{NAME}/commit/{signed_in.repos[NAME].refs['main']}"


def test_only_the_checkpoints_own_files_and_the_card_are_uploaded(
    signed_in: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "full"
    shutil.copytree(checkpoint, folder)
    for name in ("secrets.json", ".env", "notes.txt", "other.safetensors", "pickle.bin"):
        (folder / name).write_text("mine")
    push_to_hub(folder, NAME)
    own = {path.name for path in checkpoint.iterdir()}
    assert uploaded(signed_in).keys() == own | {"README.md"}


def test_the_card_is_uploaded(signed_in: Hub, checkpoint: Path) -> None:
    push_to_hub(checkpoint, NAME)
    assert uploaded(signed_in)["README.md"].decode() == model_card(checkpoint, repository=NAME)


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_as_private_as_asked(
    signed_in: Hub, checkpoint: Path, private: bool
) -> None:
    push_to_hub(checkpoint, NAME, private=private)
    assert signed_in.repos[NAME].private == private


def test_the_licence_is_the_one_that_the_base_models_page_names(
    signed_in: Hub, checkpoint: Path
) -> None:
    signed_in.add_files("somebody/base", {"config.json": b"{}"}, license="apache-2.0")
    push_to_hub(checkpoint, NAME, base_model="somebody/base")
    assert '\nlicense: "apache-2.0"\n' in uploaded(signed_in)["README.md"].decode()


def test_an_unknown_licence_is_not_named(signed_in: Hub, checkpoint: Path) -> None:
    push_to_hub(checkpoint, NAME, base_model="somebody/unknown")
    assert "license" not in uploaded(signed_in)["README.md"].decode()


def test_without_a_token_an_upload_is_refused_in_a_sentence(hub: Hub, checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="HF_TOKEN"):
        push_to_hub(checkpoint, NAME)
    assert not hub.uploaded


def test_an_upload_that_breaks_is_refused_in_a_sentence_and_goes_on_later(
    signed_in: Hub, checkpoint: Path
) -> None:
    signed_in.refused_uploads = 1
    with pytest.raises(CheckpointError, match="answers with an error") as refused:
        push_to_hub(checkpoint, NAME)
    assert "\n" not in str(refused.value)
    assert not signed_in.repos[NAME].commits
    kept = set(signed_in.uploaded)
    assert kept
    push_to_hub(checkpoint, NAME)
    assert signed_in.puts == len(signed_in.uploaded)
    assert (
        uploaded(signed_in)["trunk.safetensors"] == (checkpoint / "trunk.safetensors").read_bytes()
    )


def test_a_damaged_checkpoint_is_not_uploaded(
    signed_in: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    non_expert = folder / "trunk.safetensors"
    content = non_expert.read_bytes()
    non_expert.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged"):
        push_to_hub(folder, NAME)
    assert not signed_in.requests


@pytest.mark.parametrize("name", ["somebody", "a/b/c", "a/", "/b", "a/b@main"])
def test_a_name_that_no_repository_has_is_refused(checkpoint: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="owner/repository"):
        push_to_hub(checkpoint, name)


def test_the_command_uploads_and_prints_the_address(
    signed_in: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    measured = tmp_path / "measured.json"
    measured.write_text('{"loss": 1.25, "tokens": 12345}')
    words = ["push", str(checkpoint), NAME, "--private", "--evaluation", str(measured)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{signed_in.url}/{NAME}/commit/")
    assert "| loss, nats/token | 1.2500 |" in uploaded(signed_in)["README.md"].decode()
    assert signed_in.repos[NAME].private


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"loss": "good"}', '{"loss": NaN}', '{"kl_mean": true}']
)
def test_an_evaluation_that_is_none_is_refused_in_one_line(
    signed_in: Hub, checkpoint: Path, tmp_path: Path, text: str
) -> None:
    measured = tmp_path / "measured.json"
    measured.write_text(text)
    result = CliRunner().invoke(app, ["push", str(checkpoint), NAME, "--evaluation", str(measured)])
    assert result.exit_code == 1
    assert "mixoff eval --json" in result.stderr
    assert not signed_in.uploaded


# ---- the card


def front_matter(card: str) -> dict[str, object]:
    import yaml

    _, head, _ = card.split("---\n", 2)
    found = yaml.safe_load(head)
    assert isinstance(found, dict)
    return found


def test_a_card_names_library_base_model_and_licence_where_the_hub_looks(
    checkpoint: Path,
) -> None:
    card = model_card(checkpoint, base_model="somebody/base", license="mit")
    found = front_matter(card)
    assert found["library_name"] == "mixoff"
    assert found["base_model"] == "somebody/base"
    assert found["license"] == "mit"
    assert "mixoff" in found["tags"]


def test_a_card_makes_no_base_model_or_licence_up(checkpoint: Path) -> None:
    card = model_card(checkpoint)
    assert not {"base_model", "license"} & front_matter(card).keys()
    assert "isn't recorded" in card


def test_what_wasnt_measured_is_told_as_not_measured(checkpoint: Path) -> None:
    card = model_card(checkpoint, evaluation={"loss": 2.0})
    assert "| loss, nats/token | 2.0000 |" in card
    assert "| perplexity | not measured |" in card
    assert model_card(checkpoint).count("not measured") == 5


def test_a_card_tells_the_sizes_that_info_tells(checkpoint: Path) -> None:
    result = CliRunner().invoke(app, ["info", str(checkpoint), "--json"])
    facts = json.loads(result.stdout)["checkpoint"]
    card = model_card(checkpoint)
    bits = facts["experts_bits_per_weight"]
    assert f"| experts, bits per weight with scales | {bits:.2f} |" in card
    for label, key in (
        ("one expert", "expert_nbytes"),
        ("all experts", "experts_nbytes"),
        ("the rest (not in experts)", "non_expert_nbytes"),
    ):
        assert f"| {label} | {format_nbytes(facts[key])} |" in card


def test_a_card_shows_commands_with_the_repositorys_name(checkpoint: Path) -> None:
    card = model_card(checkpoint, repository=NAME)
    assert f"mixoff chat --quantized-model-name {NAME}" in card
    assert f"mixoff {__version__}" in card


def test_text_in_a_name_cant_end_the_front_matter(checkpoint: Path) -> None:
    name = 'a/b"\n---\nlicense: mine'
    assert front_matter(model_card(checkpoint, base_model=name))["base_model"] == name
