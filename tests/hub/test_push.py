"""An uploaded checkpoint equals the local one, and only its own files are uploaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixoff.cli import app
from mixoff.errors import CheckpointError, ConfigError
from mixoff.hub import model_card, named_checkpoint, push_to_hub
from support.hub_server import Hub

NAME = "somebody/uploaded"
RELEASED_LAYOUT = Path(__file__).parents[1] / "data" / "released-layout-tiny"

# The client uploads with an argument that its httpx deprecates.
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


def test_an_uploaded_checkpoint_is_fetched_as_it_was(signed_in: Hub, checkpoint: Path) -> None:
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
def test_a_new_repository_is_private_on_request(
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


def test_a_broken_upload_is_refused_in_a_sentence_and_resumes_later(
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
def test_an_invalid_repository_name_is_refused(checkpoint: Path, name: str) -> None:
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
    "text",
    ["{", "[1]", '{"loss": "good"}', '{"loss": NaN}', '{"kl_mean": true}'],
    ids=["cut", "a list", "a text", "NaN", "a truth value"],
)
def test_an_invalid_evaluation_is_refused_in_one_line(
    signed_in: Hub, checkpoint: Path, tmp_path: Path, text: str
) -> None:
    measured = tmp_path / "measured.json"
    measured.write_text(text)
    result = CliRunner().invoke(app, ["push", str(checkpoint), NAME, "--evaluation", str(measured)])
    assert result.exit_code == 1
    assert "mixoff eval --json" in result.stderr
    assert not signed_in.uploaded
