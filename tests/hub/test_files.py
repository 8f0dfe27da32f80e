"""An unquantized model is fetched file by file; each is verified, and removed unless kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download

from mixoff.checkpoints.safetensors_read import read_shard
from mixoff.checkpoints.source_files import FolderFiles, SourceFiles
from mixoff.checkpoints.unquantized import UnquantizedCheckpoint
from mixoff.convert import quantize_checkpoint
from mixoff.errors import CheckpointError
from mixoff.hub import HubFiles
from support.hub_server import Hub
from support.tiny import MIXED

NAME = "somebody/original"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="session")
def original(tiny_mixtral: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral in several files with an index."""
    from transformers import MixtralForCausalLM

    folder = tmp_path_factory.mktemp("original")
    model = MixtralForCausalLM.from_pretrained(tiny_mixtral())
    model.save_pretrained(folder, max_shard_size="200KB")
    assert (folder / INDEX).exists()
    return folder


def weights(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_a_repository_has_the_interface_and_sizes_of_a_local_folder(
    hub: Hub, original: Path, tmp_path: Path
) -> None:
    commit = hub.add(NAME, original)
    files: SourceFiles = HubFiles(NAME, tmp_path / "work", keep=False)
    local = FolderFiles(original)
    assert files.identity == f"{NAME}@{commit}"
    assert files.name == f"{NAME}@{commit[:8]}"
    assert dict(files.nbytes) == dict(local.nbytes)
    assert {n: shard.tensors for n, shard in files.headers.items()} == {
        n: shard.tensors for n, shard in local.headers.items()
    }


def test_headers_are_fetched_without_the_weights(hub: Hub, original: Path, tmp_path: Path) -> None:
    hub.add(NAME, original)
    files = HubFiles(NAME, tmp_path, keep=False)
    assert not weights(tmp_path)
    for name, size in files.nbytes.items():
        assert hub.sent[name] == min(size, 1 << 16)


def test_a_header_longer_than_the_first_request_is_read_whole(
    hub: Hub, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixoff.hub.files._FIRST_BYTES", 100)
    hub.add(NAME, original)
    files = HubFiles(NAME, tmp_path, keep=False)
    for name, shard in files.headers.items():
        assert shard.header_crc32 == read_shard(original / name).header_crc32


def test_a_models_experts_are_read_from_fetched_files(
    hub: Hub, original: Path, tmp_path: Path
) -> None:
    hub.add(NAME, original)
    files = HubFiles(NAME, tmp_path, keep=False)
    fetched = UnquantizedCheckpoint(files)
    for name in fetched.files_of_layer(1):
        files.fetch(name)
    expected = dict(UnquantizedCheckpoint(FolderFiles(original)).expert(1, 3))
    for name, weight in fetched.expert(1, 3):
        assert weight.equal(expected[name]), name


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("trouble", [{}, {"cuts": 2}], ids=["none", "cuts"])
def test_a_conversion_of_a_repository_gives_the_bytes_of_one_of_a_folder(
    hub: Hub, original: Path, tmp_path: Path, trouble: dict[str, int]
) -> None:
    hub.add(NAME, original)
    for name, value in trouble.items():
        setattr(hub, name, value)
    quantize_checkpoint(NAME, tmp_path / "far", MIXED, progress=False)
    quantize_checkpoint(original, tmp_path / "near", MIXED, progress=False)
    assert contents(tmp_path / "far") == contents(tmp_path / "near")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == [
        "far",
        "near",
    ]


def test_a_conversion_never_holds_all_files_of_a_repository(
    hub: Hub, original: Path, tmp_path: Path
) -> None:
    hub.add(NAME, original)
    files = HubFiles(NAME, tmp_path / "source", keep=False)
    most = 0

    class Watched(HubFiles):
        def release(self, name: str) -> None:
            nonlocal most
            most = max(most, len(weights(tmp_path / "source")))
            super().release(name)

    quantize_checkpoint(
        Watched(NAME, tmp_path / "source", keep=False), tmp_path / "out", MIXED, progress=False
    )
    assert 0 < most < len(files.headers)


def test_an_interrupted_conversion_resumes_without_fetching_converted_layers(
    hub: Hub, original: Path, tmp_path: Path
) -> None:
    hub.add(NAME, original)

    class Failing(HubFiles):
        def fetch(self, name: str) -> None:
            if name == sorted(self.headers)[-2]:
                raise CheckpointError("the network is gone")
            super().fetch(name)

    with pytest.raises(CheckpointError, match="network is gone"):
        quantize_checkpoint(
            Failing(NAME, tmp_path / "source", keep=False), tmp_path / "far", MIXED, progress=False
        )
    hub.sent.clear()
    quantize_checkpoint(
        HubFiles(NAME, tmp_path / "source", keep=False), tmp_path / "far", MIXED, progress=False
    )
    fetched = [n for n, count in hub.sent.items() if n.endswith("safetensors") and count > 1 << 16]
    assert 0 < len(fetched) < len(weights(original))
    quantize_checkpoint(original, tmp_path / "near", MIXED, progress=False)
    assert contents(tmp_path / "far") == contents(tmp_path / "near")


@pytest.mark.parametrize("keep", [False, True])
def test_a_released_file_stays_only_if_it_is_kept(
    hub: Hub, original: Path, tmp_path: Path, keep: bool
) -> None:
    hub.add(NAME, original)
    files = HubFiles(NAME, tmp_path, keep=keep)
    name = weights(original)[0]
    files.fetch(name)
    assert files.headers[name].path.read_bytes() == (original / name).read_bytes()
    files.release(name)
    assert files.headers[name].path.exists() == keep


def test_a_kept_file_isnt_fetched_again_by_the_next_run(
    hub: Hub, original: Path, tmp_path: Path
) -> None:
    hub.add(NAME, original)
    name = weights(original)[0]
    HubFiles(NAME, tmp_path, keep=True).fetch(name)
    again = HubFiles(NAME, tmp_path, keep=True)
    hub.sent.clear()
    again.fetch(name)
    assert not hub.sent


def test_a_partial_file_of_an_earlier_run_is_resumed(
    hub: Hub, original: Path, tmp_path: Path
) -> None:
    hub.add(NAME, original)
    files = HubFiles(NAME, tmp_path, keep=True)
    name = weights(original)[0]
    content = (original / name).read_bytes()
    (tmp_path / f"{name}.mixoff-partial").write_bytes(content[:50_000])
    hub.sent.clear()
    files.fetch(name)
    assert files.headers[name].path.read_bytes() == content
    assert hub.sent[name] == len(content) - 50_000


@pytest.mark.parametrize(
    "trouble",
    [{"cuts": 2}, {"limited": 2}, {"knows_ranges": False}],
    ids=["cuts", "limited", "no ranges"],
)
def test_a_troubled_connection_gives_the_same_bytes(
    hub: Hub, original: Path, tmp_path: Path, trouble: dict[str, int]
) -> None:
    hub.add(NAME, original)
    files = HubFiles(NAME, tmp_path, keep=True)
    for setting, value in trouble.items():
        setattr(hub, setting, value)
    for name in files.headers:
        files.fetch(name)
        assert files.headers[name].path.read_bytes() == (original / name).read_bytes()


def test_headers_are_read_from_a_server_without_ranges(
    hub: Hub, original: Path, tmp_path: Path
) -> None:
    hub.add(NAME, original)
    hub.knows_ranges = False
    files = HubFiles(NAME, tmp_path, keep=False)
    name = weights(original)[0]
    assert files.headers[name].tensors == read_shard(original / name).tensors


def test_a_flipped_byte_is_refused_by_name(hub: Hub, original: Path, tmp_path: Path) -> None:
    hub.add(NAME, original)
    files = HubFiles(NAME, tmp_path, keep=True)
    name = weights(original)[0]
    hub.flipped = {name}
    with pytest.raises(CheckpointError, match=f"{name} arrived with other contents"):
        files.fetch(name)
    assert not list(tmp_path.glob(f"{name}*"))


def test_a_file_of_another_commit_is_fetched_again(
    hub: Hub, original: Path, tmp_path: Path
) -> None:
    hub.add(NAME, original)
    files = HubFiles(NAME, tmp_path, keep=True)
    name = weights(original)[0]
    files.fetch(name)
    path = files.headers[name].path
    path.write_bytes(b"x" * path.stat().st_size)
    files.fetch(name)
    assert path.read_bytes() == (original / name).read_bytes()


def test_files_in_the_hubs_cache_are_used_and_kept(
    hub: Hub, original: Path, tmp_path: Path
) -> None:
    hub.add(NAME, original)
    shutil.copytree(original, tmp_path / "expected")
    _fill_cache(hub)
    hub.sent.clear()
    files = HubFiles(NAME, tmp_path / "work", keep=False)
    for name in weights(original):
        files.fetch(name)
        files.release(name)
        assert files.headers[name].path.read_bytes() == (original / name).read_bytes()
    assert not hub.sent
    assert not (tmp_path / "work").exists()


def test_files_in_the_hubs_cache_are_used_offline(
    hub: Hub, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add(NAME, original)
    _fill_cache(hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    files = HubFiles(NAME, tmp_path, keep=False)
    files.fetch(weights(original)[0])
    assert files.identity == f"{NAME}@{commit}"


def _fill_cache(hub: Hub) -> None:
    for name in next(iter(hub.repos[NAME].commits.values())):
        hf_hub_download(NAME, name)


def test_a_tampered_file_in_the_hubs_cache_is_refused(
    hub: Hub, original: Path, tmp_path: Path
) -> None:
    hub.add(NAME, original)
    _fill_cache(hub)
    files = HubFiles(NAME, tmp_path, keep=False)
    name = weights(original)[0]
    path = files.headers[name].path
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{name} in the hub's cache isn't what the hub has"):
        files.fetch(name)


def test_a_repository_with_pickles_only_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.add_files(NAME, {"config.json": b"{}", "pytorch_model-00001-of-00002.bin": b"\x80"})
    with pytest.raises(CheckpointError, match="weights are pickles"):
        HubFiles(NAME, tmp_path, keep=False)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/x.safetensors", "absent.bin"])
def test_an_index_that_names_other_files_is_refused(
    hub: Hub, original: Path, tmp_path: Path, name: str
) -> None:
    files = {path.name: path.read_bytes() for path in original.iterdir()}
    files[INDEX] = json.dumps({"weight_map": {"lm_head.weight": name}}).encode()
    hub.add_files(NAME, files)
    with pytest.raises(CheckpointError, match="safetensors file of"):
        HubFiles(NAME, tmp_path, keep=False)


def test_an_index_that_names_a_missing_file_is_refused(
    hub: Hub, original: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in original.iterdir()}
    files.pop(weights(original)[0])
    hub.add_files(NAME, files)
    with pytest.raises(CheckpointError, match="isn't in the repository, though its index lists it"):
        HubFiles(NAME, tmp_path, keep=False)


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"\xff" * 100, b"\x08" + b"\0" * 7 + b"{{{{{{{{"],
    ids=["empty", "short", "no header", "no JSON"],
)
def test_a_file_that_is_no_safetensors_file_is_refused(
    hub: Hub, tmp_path: Path, content: bytes
) -> None:
    hub.add_files(NAME, {"config.json": b"{}", "model.safetensors": content})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: (no safetensors|its header)"):
        HubFiles(NAME, tmp_path, keep=False)
