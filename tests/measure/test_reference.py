"""The reference's logits are those of the whole model, which is never whole in memory."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import MixtralForCausalLM

from mixoff import ConfigError
from mixoff.checkpoints.source_files import FolderFiles
from mixoff.checkpoints.unquantized import UnquantizedCheckpoint
from mixoff.errors import CheckpointError
from mixoff.measure import compute_reference
from mixoff.measure.reference import Reference, reference_nbytes
from mixoff.planning.free_memory import headroom
from support.tiny import bytes_as_ids, random_mixtral

FILE = "model.safetensors"
TEXT = "Windows of 128 tokens, the last one shorter: each token sees its window only. " * 4


def all_logits(reference: Reference) -> Tensor:
    return reference.logits(slice(None))


def stock_logits(folder: Path, reference: Reference, attention: str = "sdpa") -> Tensor:
    """Return the logits of transformers' own model for the same windows, all of it in memory."""
    model = MixtralForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        experts_implementation="eager",
        attn_implementation=attention,
    )
    with torch.no_grad():
        return torch.cat([model(input_ids=read[None]).logits[0] for read, _ in reference.windows])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sliding_window": 16},
        {"tie_word_embeddings": True},
        {"experts": 4, "top_k": 3},
        {"favourite": 5},
        {"dtype": torch.float16},
        {"dtype": torch.bfloat16},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
    ids=str,
)
def test_logits_are_those_of_the_whole_model_to_the_bit(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    random_mixtral(**settings).save_pretrained(tmp_path)
    reference = compute_reference(tmp_path, bytes_as_ids, TEXT)
    assert len(reference.windows) == 3
    assert torch.equal(all_logits(reference), stock_logits(tmp_path, reference))


def test_logits_are_those_of_transformers_eager_attention_but_for_rounding(
    tiny_mixtral: Callable[..., Path],
) -> None:
    reference = compute_reference(tiny_mixtral(), bytes_as_ids, TEXT)
    expected = stock_logits(tiny_mixtral(), reference, attention="eager")
    assert torch.allclose(all_logits(reference), expected, rtol=0, atol=1e-4)


def test_a_model_in_several_files_gives_the_same_logits(
    tiny_mixtral: Callable[..., Path], tmp_path: Path
) -> None:
    whole = tiny_mixtral()
    MixtralForCausalLM.from_pretrained(whole).save_pretrained(tmp_path, max_shard_size="200KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 2
    logits = [all_logits(compute_reference(f, bytes_as_ids, TEXT)) for f in (whole, tmp_path)]
    assert torch.equal(*logits)


def test_stacked_experts_give_the_same_logits(
    tiny_mixtral: Callable[..., Path], tmp_path: Path
) -> None:
    one_by_one = tiny_mixtral()
    state = MixtralForCausalLM.from_pretrained(one_by_one).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / FILE)
    (tmp_path / "config.json").write_bytes((one_by_one / "config.json").read_bytes())
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / FILE)
    logits = [all_logits(compute_reference(f, bytes_as_ids, TEXT)) for f in (one_by_one, tmp_path)]
    assert torch.equal(*logits)


class WatchedOriginal(UnquantizedCheckpoint):
    """An original that counts the tensors still in memory when another one is read."""

    def __init__(self, files: FolderFiles) -> None:
        super().__init__(files)
        self.alive: dict[str, list[StorageWeakRef]] = {"expert": [], "attention": []}
        self.most = {"expert": 0, "attention": 0}

    def expert(self, layer: int, expert: int) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in super().expert(layer, expert):
            self._note("expert", [tensor])
            yield name, tensor

    def tensor(self, name: str) -> Tensor:
        tensor = super().tensor(name)
        if ".self_attn." in name:
            self._note("attention", [tensor])
        return tensor

    def _note(self, kind: str, tensors: Any) -> None:
        self.alive[kind] += [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
        self.alive[kind] = [ref for ref in self.alive[kind] if not ref.expired()]
        self.most[kind] = max(self.most[kind], len(self.alive[kind]))


def test_one_expert_and_one_layers_attention_are_in_memory_at_a_time(
    tiny_mixtral: Callable[..., Path],
) -> None:
    original = WatchedOriginal(FolderFiles(tiny_mixtral()))  # float32: what is read is what is used
    compute_reference(original, bytes_as_ids, TEXT)
    assert original.most == {"expert": 2, "attention": 4}  # gate and up, down; q, k, v, o


def test_each_expert_is_read_once_for_all_windows(tiny_mixtral: Callable[..., Path]) -> None:
    read = []

    class Counted(UnquantizedCheckpoint):
        def expert(self, layer: int, expert: int) -> Iterator[tuple[str, Tensor]]:
            read.append((layer, expert))
            return super().expert(layer, expert)

    original = Counted(FolderFiles(tiny_mixtral()))
    assert len(compute_reference(original, bytes_as_ids, TEXT).windows) == 3
    assert read == [(layer, expert) for layer in range(2) for expert in range(8)]


def test_an_expert_that_no_token_chose_is_not_read(tiny_mixtral: Callable[..., Path]) -> None:
    read = []

    class Counted(UnquantizedCheckpoint):
        def expert(self, layer: int, expert: int) -> Iterator[tuple[str, Tensor]]:
            read.append(expert)
            return super().expert(layer, expert)

    original = Counted(FolderFiles(tiny_mixtral(top_k=1, favourite=5)))
    compute_reference(original, bytes_as_ids, TEXT)
    assert read == [5, 5]


def test_files_are_fetched_before_they_are_read_and_released_when_no_layer_needs_them(
    tiny_mixtral: Callable[..., Path], tmp_path: Path
) -> None:
    class FetchedFiles(FolderFiles):
        def fetch(self, name: str) -> None:
            assert name not in released
            present.add(name)

        def release(self, name: str) -> None:
            present.remove(name)
            released.add(name)

    class Checked(UnquantizedCheckpoint):
        def _read(self, name: str, row: int | None = None) -> Tensor:
            assert self._home[name][0] in present
            return super()._read(name, row)

    present: set[str] = set()
    released: set[str] = set()
    model = MixtralForCausalLM.from_pretrained(tiny_mixtral())
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    original = Checked(FetchedFiles(tmp_path))
    compute_reference(original, bytes_as_ids, TEXT)
    assert released == original.files_of_layer(0) | original.files_of_layer(1)


def test_the_given_number_of_tokens_is_predicted(tiny_mixtral: Callable[..., Path]) -> None:
    short = compute_reference(tiny_mixtral(), bytes_as_ids, TEXT, tokens=130)
    whole = compute_reference(tiny_mixtral(), bytes_as_ids, TEXT)
    assert len(all_logits(short)) == 130
    assert torch.equal(all_logits(short)[:128], all_logits(whole)[:128])


def test_too_many_tokens_are_refused_with_the_number_that_fits(
    tiny_mixtral: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = UnquantizedCheckpoint(FolderFiles(tiny_mixtral()))
    windows = compute_reference(original, bytes_as_ids, TEXT, tokens=150).windows
    needed = reference_nbytes(original, windows)
    free = SimpleNamespace(available=needed + headroom(needed))
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with pytest.raises(ConfigError, match=r"tokens=151: .* give tokens=150 or fewer"):
        compute_reference(original, bytes_as_ids, TEXT, tokens=151)
    assert compute_reference(original, bytes_as_ids, TEXT, tokens=150).windows.predicted == 150


def test_a_model_that_does_not_fit_at_all_is_refused(
    tiny_mixtral: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=300_000))
    with pytest.raises(ConfigError, match="not even one token fits"):
        compute_reference(tiny_mixtral(), bytes_as_ids, TEXT)


def test_a_quantized_checkpoint_is_no_original(quantized: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="no unquantized Mixtral"):
        compute_reference(quantized(), bytes_as_ids, TEXT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 129}, r"window=129: this model has 128 positions"),
        ({"tokens": 0}, r"tokens=0: give how many to predict, 1 or more"),
    ],
)
def test_invalid_windows_and_tokens_are_refused(
    options: dict[str, int], message: str, tiny_mixtral: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=message):
        compute_reference(tiny_mixtral(), bytes_as_ids, TEXT, **options)


def test_a_text_of_one_token_is_refused(tiny_mixtral: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="a text of 1 tokens has none to predict"):
        compute_reference(tiny_mixtral(), bytes_as_ids, "x")
