"""A checkpoint from the hub is complete and has the hub's hashes, or it is refused."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from huggingface_hub import constants

from mixoff.checkpoints.formats import open_checkpoint
from mixoff.errors import CheckpointError
from mixoff.hub import HubCheckpoint, named_checkpoint
from mixoff.hub.snapshot import folder_title, storage_folder
from mixoff.hub.verify import digest_of
from support.hub_fixtures import process_environment
from support.hub_server import Hub
from support.tiers import tiered

NAME = "somebody/quantized"
LAYER = "layer-00001.safetensors"
RELEASED_LAYOUT = Path(__file__).parents[1] / "data" / "released-layout-tiny"


@pytest.fixture
def checkpoint(quantized: Callable[..., Path]) -> Path:
    return quantized()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(name: str = NAME) -> str:
    with pytest.raises(CheckpointError) as refused:
        named_checkpoint(name)
    message = str(refused.value)
    assert message.startswith(name.partition("@")[0])
    assert "\n" not in message
    return message


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def cached_file(name: str) -> Path:
    (path,) = (storage_folder(NAME) / "snapshots").glob(f"*/{name}")
    return path


def partial_files() -> list[Path]:
    return list(Path(constants.HF_HUB_CACHE).rglob("*partial*"))


# ---- fetched


def test_a_fetched_checkpoint_has_the_hubs_bytes(hub: Hub, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint)
    assert contents(named_checkpoint(NAME).folder) == contents(checkpoint)
    assert not partial_files()


def test_a_fetched_checkpoint_has_its_branchs_commit(hub: Hub, checkpoint: Path) -> None:
    commit = hub.add(NAME, checkpoint)
    fetched = named_checkpoint(NAME)
    assert (fetched.repository, fetched.revision) == (NAME, commit)
    assert fetched.title == f"{NAME}@{commit[:8]}"


def test_a_folder_in_the_cache_is_titled_by_its_repository_and_commit(
    hub: Hub, checkpoint: Path
) -> None:
    commit = hub.add(NAME, checkpoint)
    assert folder_title(named_checkpoint(NAME).folder) == f"{NAME}@{commit[:8]}"
    assert folder_title(Path("models/snapshots")) == "snapshots"
    assert folder_title(Path("snapshots/model")) == "model"
    assert folder_title(Path()) == ""


def test_every_file_is_requested_at_that_commit(hub: Hub, checkpoint: Path) -> None:
    commit = hub.add(NAME, checkpoint)
    named_checkpoint(NAME)
    resolved = [request for request in hub.requests if "/resolve/" in request]
    assert resolved
    assert all(f"/resolve/{commit}/" in request for request in resolved)


def test_a_pinned_commit_stays_when_the_branch_moves_on(hub: Hub, checkpoint: Path) -> None:
    commit = hub.add(NAME, checkpoint)
    hub.add_files(NAME, {"config.json": b"{}"})
    assert named_checkpoint(f"{NAME}@{commit}").revision == commit


def test_a_complete_pinned_commit_makes_no_further_request(hub: Hub, checkpoint: Path) -> None:
    commit = hub.add(NAME, checkpoint)
    named_checkpoint(f"{NAME}@{commit}")
    hub.requests.clear()
    named_checkpoint(f"{NAME}@{commit}")
    assert not hub.requests


def test_a_local_folder_has_no_commit(checkpoint: Path) -> None:
    assert named_checkpoint(checkpoint) == HubCheckpoint(checkpoint)


def test_files_that_mixoff_never_reads_are_never_fetched(hub: Hub, checkpoint: Path) -> None:
    unread = ("code.py", "model.bin", "deep/config.json", ".hidden.json")
    files = contents(checkpoint) | dict.fromkeys(unread, b"print()")
    hub.add_files(NAME, files)
    assert contents(named_checkpoint(NAME).folder).keys() == contents(checkpoint).keys()


def test_a_second_start_fetches_no_file(hub: Hub, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint)
    named_checkpoint(NAME)
    hub.sent.clear()
    named_checkpoint(NAME)
    assert not hub.sent


def test_the_clients_own_cache_is_used(hub: Hub, checkpoint: Path) -> None:
    from huggingface_hub import hf_hub_download

    hub.add(NAME, checkpoint)
    for name in contents(checkpoint):
        hf_hub_download(NAME, name)
    hub.sent.clear()
    assert contents(named_checkpoint(NAME).folder) == contents(checkpoint)
    assert not hub.sent


def test_the_client_finds_fetched_files(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import snapshot_download

    hub.add(NAME, checkpoint)
    fetched = named_checkpoint(NAME)
    go_offline(monkeypatch)
    assert Path(snapshot_download(NAME)).samefile(fetched.folder)


# ---- hashes


def test_git_and_sha256_hashes_are_those_of_git_and_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello\n")
    blob = "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert digest_of(tmp_path / "hello", blob) == blob
    sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert digest_of(tmp_path / "hello", sha256) == sha256


@pytest.mark.parametrize("name", ["config.json", LAYER])
def test_a_file_with_a_flipped_byte_is_refused_by_name(
    hub: Hub, checkpoint: Path, name: str
) -> None:
    hub.add(NAME, checkpoint)
    hub.flipped = {name}
    assert f"{name} arrived with other contents than the hub lists" in refusal()
    assert not list(Path(constants.HF_HUB_CACHE).rglob(f"snapshots/*/{name}"))
    assert not partial_files()


def test_after_a_flipped_byte_a_second_attempt_is_complete(hub: Hub, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint)
    hub.flipped = {LAYER}
    refusal()
    hub.flipped = set()
    assert contents(named_checkpoint(NAME).folder) == contents(checkpoint)


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("network", [True, False])
@pytest.mark.parametrize("name", ["config.json", LAYER])
def test_a_tampered_file_in_the_cache_is_removed_and_refused(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str, network: bool
) -> None:
    hub.add(NAME, checkpoint)
    named_checkpoint(NAME)
    path = cached_file(name)
    flip_last_byte(path)
    if not network:
        go_offline(monkeypatch)
    assert f"{name} in the hub's cache isn't what the hub has" in refusal()
    assert not path.is_symlink()
    assert not path.exists()


def test_a_tampered_file_is_refused_without_notes_and_without_a_network(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, checkpoint)
    named_checkpoint(NAME)
    shutil.rmtree(storage_folder(NAME) / "mixoff")
    flip_last_byte(cached_file(LAYER))
    go_offline(monkeypatch)
    assert LAYER in refusal()


def test_a_blob_in_the_clients_shared_store_is_verified_by_its_links_name(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add(NAME, checkpoint)
    named_checkpoint(NAME)
    shutil.rmtree(storage_folder(NAME) / "mixoff")
    blob = cached_file(LAYER).resolve()
    blob.symlink_to(blob.rename(tmp_path / ("f" * 64)))
    go_offline(monkeypatch)
    assert contents(named_checkpoint(NAME).folder) == contents(checkpoint)


@pytest.mark.parametrize("revision", ["../../../outside", "/outside"])
def test_a_revision_is_never_a_path_out_of_the_cache(
    hub: Hub, checkpoint: Path, tmp_path: Path, revision: str
) -> None:
    revision = revision.replace("/outside", f"{tmp_path}/outside")
    commit = hub.add(NAME, checkpoint)
    hub.repos[NAME].refs[revision] = commit
    assert named_checkpoint(f"{NAME}@{revision}").revision == commit
    assert not list(tmp_path.rglob("outside"))


def test_a_removed_file_is_fetched_again(hub: Hub, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint)
    named_checkpoint(NAME)
    flip_last_byte(cached_file(LAYER))
    refusal()
    hub.sent.clear()
    assert contents(named_checkpoint(NAME).folder) == contents(checkpoint)
    assert set(hub.sent) == {LAYER}


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the names of files that are hashed from here on."""
    names: list[str] = []

    def count(path: Path, like: str) -> str:
        names.append(path.name)
        return digest_of(path, like)

    monkeypatch.setattr("mixoff.hub.verify.digest_of", count)
    return names


def test_a_verified_file_isnt_hashed_at_the_next_start(
    hub: Hub, checkpoint: Path, hashed: list[str]
) -> None:
    hub.add(NAME, checkpoint)
    named_checkpoint(NAME)
    hashed.clear()
    named_checkpoint(NAME)
    assert not hashed


def test_only_a_touched_file_is_hashed_again(hub: Hub, checkpoint: Path, hashed: list[str]) -> None:
    hub.add(NAME, checkpoint)
    named_checkpoint(NAME)
    hashed.clear()
    os.utime(cached_file(LAYER), ns=(1, 1))
    named_checkpoint(NAME)
    assert hashed == [LAYER]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 1, "files": {"a": 1}}', "[" * 10**5],
    ids=["empty", "cut", "a list", "a number", "nested"],
)
def test_unreadable_notes_count_as_none(
    hub: Hub, checkpoint: Path, hashed: list[str], text: str
) -> None:
    hub.add(NAME, checkpoint)
    named_checkpoint(NAME)
    (notes,) = (storage_folder(NAME) / "mixoff").iterdir()
    notes.write_text(text)
    hashed.clear()
    named_checkpoint(NAME)
    assert sorted(hashed) == sorted(contents(checkpoint))


# ---- broken connections


def test_a_broken_connection_resumes_where_it_broke(hub: Hub, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint)
    hub.cuts = 3
    assert contents(named_checkpoint(NAME).folder) == contents(checkpoint)
    ranges = [request for request in hub.requests if "bytes=" in request]
    assert ranges
    assert not any("bytes=0-" in request for request in ranges)


def test_a_connection_that_always_breaks_is_refused(hub: Hub, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint)
    hub.cuts = 10**9  # in the end, less than a chunk arrives before a cut
    assert "connection broke" in refusal()
    assert not list(Path(constants.HF_HUB_CACHE).rglob("snapshots/*/layer*"))


def test_a_server_without_ranges_sends_a_file_again_and_it_is_complete(
    hub: Hub, checkpoint: Path
) -> None:
    hub.add(NAME, checkpoint)
    hub.cuts, hub.knows_ranges = 3, False
    assert contents(named_checkpoint(NAME).folder) == contents(checkpoint)


def test_a_damaged_partial_file_is_fetched_again(hub: Hub, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint)
    blobs = storage_folder(NAME) / "blobs"
    blobs.mkdir(parents=True)
    sha256 = next(sha256 for sha256, (name, _) in hub.large.items() if name == LAYER)
    (blobs / f"{sha256}.mixoff-partial").write_bytes(b"no part of it" * 100)
    assert contents(named_checkpoint(NAME).folder) == contents(checkpoint)


def start_fetching(hub: Hub, home: Path) -> subprocess.Popen[str]:
    code = (
        "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 4096\n"
        f"from mixoff.hub import named_checkpoint; print(named_checkpoint({NAME!r}).folder)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=process_environment(hub, home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def resume_fetching(hub: Hub, home: Path, resumed_by: str) -> Path:
    """Return the folder that a further process, or this one, fetches."""
    if resumed_by == "this process":
        return named_checkpoint(NAME).folder
    process = start_fetching(hub, home)
    folder, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors == ""  # no progress bar in a pipe
    return Path(folder.strip())


@pytest.mark.parametrize(
    "resumed_by", tiered(["this process", "another process"], fast=["this process"])
)
def test_after_a_kill_the_rest_is_fetched_and_no_more(
    hub: Hub, checkpoint: Path, tmp_path: Path, resumed_by: str
) -> None:
    hub.add(NAME, checkpoint)
    hub.pause = 0.02
    first = start_fetching(hub, tmp_path / "home")
    while hub.sent[LAYER] < 40_000 and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (partial,) = tmp_path.rglob("*.mixoff-partial")
    kept = partial.stat().st_size
    assert kept > 20_000
    time.sleep(0.1)  # until the fake hub notices
    hub.pause = 0
    hub.sent.clear()
    folder = resume_fetching(hub, tmp_path / "home", resumed_by)
    assert contents(folder) == contents(checkpoint)
    assert hub.sent[LAYER] == (checkpoint / LAYER).stat().st_size - kept


def test_a_terminal_shows_the_progress_of_a_file(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.add(NAME, checkpoint)
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    code = f"from mixoff.hub import named_checkpoint; named_checkpoint({NAME!r})"
    environment = process_environment(hub, tmp_path)
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=theirs):
        os.close(theirs)
        output = b""
        with suppress(OSError):  # Linux raises it when the other end is closed
            while piece := os.read(ours, 1 << 16):
                output += piece
    os.close(ours)
    assert b"config.json: 100%" in output


# ---- refused


def test_an_unknown_revision_is_named(hub: Hub, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint)
    assert "no branch, tag or commit 'v9'" in refusal(f"{NAME}@v9")


def test_an_unknown_repository_names_private_ones_as_a_reason(hub: Hub) -> None:
    assert "no such repository on the hub (a private one needs HF_TOKEN)" in refusal()


def test_a_gated_repository_names_the_page_of_its_terms(hub: Hub, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint, gated=True)
    message = refusal()
    assert f"{hub.url}/{NAME}" in message
    assert "HF_TOKEN" in message


@pytest.mark.parametrize("lock", ["gated", "private"])
def test_a_token_opens_a_closed_repository(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    hub.add(NAME, checkpoint, **{lock: True})
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert contents(named_checkpoint(NAME).folder) == contents(checkpoint)
    assert not hub.tokens_elsewhere


def test_colabs_secret_opens_a_closed_repository(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, checkpoint, private=True)
    google, colab = ModuleType("google"), ModuleType("google.colab")
    userdata, errors = ModuleType("google.colab.userdata"), ModuleType("google.colab.errors")
    userdata.get = {"HF_TOKEN": hub.token}.__getitem__  # type: ignore[attr-defined]
    userdata.NotebookAccessError = userdata.SecretNotFoundError = KeyError  # type: ignore[attr-defined]
    errors.Error = KeyError  # type: ignore[attr-defined]
    google.colab, colab.userdata, colab.errors = colab, userdata, errors  # type: ignore[attr-defined]
    for module in (google, colab, userdata, errors):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    auth = "huggingface_hub.utils._auth"
    monkeypatch.setattr(f"{auth}.is_google_colab", lambda: True)
    monkeypatch.setattr(f"{auth}.is_colab_enterprise", lambda: False)
    monkeypatch.setattr(f"{auth}._IS_GOOGLE_COLAB_CHECKED", False)
    monkeypatch.setattr(f"{auth}._GOOGLE_COLAB_SECRET", None)
    assert contents(named_checkpoint(NAME).folder) == contents(checkpoint)


def test_too_many_requests_name_the_time_to_wait(hub: Hub, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint)
    hub.limited, hub.limit_headers = 1, {"ratelimit": '"api";r=0;t=55'}
    assert "too many requests from here: try again in 55 seconds" in refusal()


def test_a_few_refusals_for_too_many_requests_are_waited_for(hub: Hub, checkpoint: Path) -> None:
    commit = hub.add(NAME, checkpoint)
    named_checkpoint(NAME)
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.add_files(NAME, contents(checkpoint))
    folder = _fetch_under_limit(hub, commit)
    assert contents(folder) == contents(checkpoint)


def _fetch_under_limit(hub: Hub, commit: str) -> Path:
    """Return the folder of files whose first requests are answered with 429."""
    from mixoff.hub.repository import HubName, list_repository
    from mixoff.hub.snapshot import Snapshot

    repository = list_repository(HubName(NAME, commit))
    snapshot = Snapshot(NAME, commit)
    hub.limited = 3
    for file in repository.files.values():
        snapshot.fetch(repository, file)
    assert hub.limited == 0
    return snapshot.folder


def test_pickles_are_refused_and_not_fetched(hub: Hub) -> None:
    hub.add_files(NAME, {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."})
    assert "pickles" in refusal()
    assert not hub.sent["pytorch_model.bin"]


def test_a_repository_without_config_is_refused(hub: Hub) -> None:
    hub.add_files(NAME, {"model.safetensors": b"123"})
    assert "has no config.json, so it isn't a model" in refusal()


def test_an_unquantized_model_is_refused_before_its_weights_are_fetched(
    hub: Hub, tiny_mixtral: Callable[..., Path]
) -> None:
    hub.add(NAME, tiny_mixtral())
    assert "it isn't quantized" in refusal()
    assert not hub.sent["model.safetensors"]


def test_an_index_that_names_files_outside_is_refused(hub: Hub, checkpoint: Path) -> None:
    files = contents(checkpoint)
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"]["lm_head.weight"] = "../../secret.safetensors"
    hub.add_files(NAME, files | {"model.safetensors.index.json": json.dumps(index).encode()})
    folder = named_checkpoint(NAME).folder
    with pytest.raises(CheckpointError, match="secret"):
        open_checkpoint(folder)


def test_a_full_disk_is_refused_before_a_large_file_is_fetched(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, checkpoint)
    usage = shutil.disk_usage(checkpoint)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    message = refusal()
    assert "1000 B free: make room, or set HF_HOME" in message
    assert not hub.sent[LAYER]


def test_a_disk_that_fills_up_is_refused_and_the_fetch_resumes_later(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, checkpoint)

    def fsync(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", fsync)
        assert "the disk is full" in refusal()
    assert contents(named_checkpoint(NAME).folder) == contents(checkpoint)


# ---- without a network


def test_offline_a_cached_checkpoint_is_found(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add(NAME, checkpoint)
    named_checkpoint(NAME)
    go_offline(monkeypatch)
    hub.requests.clear()
    assert named_checkpoint(NAME).revision == commit
    assert not hub.requests


def test_offline_a_missing_checkpoint_names_offline_mode_as_the_reason(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_offline(monkeypatch)
    assert "offline mode is on (HF_HUB_OFFLINE)" in refusal()


def test_offline_an_incomplete_checkpoint_is_refused(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, checkpoint)
    hub.flipped = {LAYER}
    refusal()
    go_offline(monkeypatch)
    assert "isn't complete in the hub's cache" in refusal()


@pytest.mark.parametrize("cached", [True, False])
def test_an_unreachable_hub_is_needed_only_for_a_checkpoint_that_isnt_cached(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    hub.add(NAME, checkpoint)
    if cached:
        named_checkpoint(NAME)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    if cached:
        assert contents(named_checkpoint(NAME).folder) == contents(checkpoint)
    else:
        assert re.search(r"can't be reached.*give a folder", refusal())
