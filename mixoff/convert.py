"""From a Hugging Face Mixtral to a mixoff checkpoint, a layer at a time. Knows both forms."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from mixoff.checkpoint import (
    INDEX_NAME,
    TRUNK_NAME,
    experts_tensor,
    layer_file,
    quantization_settings,
    read_json,
)
from mixoff.errors import CheckpointError, ConfigError
from mixoff.quantization import QuantizedTensor, Scheme
from mixoff.records import RecordLayout
from mixoff.shards import NewTensor, Shard, read_shard, write_shard

_COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
_ATTENTION = re.compile(r"\.self_attn\.[qkvo]_proj\.weight$")
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")


def quantize_checkpoint(
    source: str | Path, target: str | Path, scheme: Scheme | None = None, *, progress: bool = True
) -> Path:
    """Quantize a Mixtral in Hugging Face's form into a new folder, and return the folder.

    One layer is in memory at a time. The folder appears under its name when it is whole.

    Parameters
    ----------
    source
        A folder with ``config.json`` and safetensors, experts one by one or stacked.
    target
        The folder to make; it must not exist yet.
    scheme
        How attention and experts are stored: by default attention in 4 bits in groups of 64,
        experts in 2 bits in groups of 16 with 8-bit scales. The rest keeps the type it has.
    progress
        Whether to show a progress bar.

    Raises
    ------
    CheckpointError
        If the source is no Mixtral or is damaged, or the target can't be written.
    ConfigError
        If the target exists already, or the scheme doesn't suit the model's shapes.
    """
    source, target, scheme = Path(source), Path(target), scheme or Scheme()
    if target.exists():
        raise ConfigError(f"{target}: exists already; give a new folder or remove it first.")
    with ExitStack() as stack:
        reader = stack.enter_context(_open_source(source))
        folder = stack.enter_context(_new_folder(target))
        shards = [_write_trunk(reader, folder)]
        layers = range(reader.num_layers)
        for layer in tqdm(layers, desc="quantizing", unit="layer", disable=not progress):
            shards.append(_write_layer(reader, folder, layer, scheme))
        _write_index(shards, folder)
        _write_settings(reader, folder, scheme)
        try:
            folder.rename(target)
        except OSError as error:
            raise CheckpointError(f"{target}: can't be written ({error.strerror}).") from error
    return target


class _Source:
    """A Hugging Face folder's tensors, under the names that transformers' models have for them."""

    def __init__(self, path: Path, config: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        self.path = path
        self.config = config
        self._files = files
        self._names = {_model_name(name): name for name in files}

    @property
    def num_layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def num_experts(self) -> int:
        return int(self.config["num_local_experts"])

    @property
    def trunk_names(self) -> list[str]:
        return [name for name in self._names if ".experts." not in name]

    def tensor(self, name: str) -> Tensor:
        if name not in self._names:
            raise CheckpointError(f"{self.path}: {name} is missing: fetch the checkpoint again.")
        stored = self._names[name]
        tensor: Tensor = self._files[stored].get_tensor(stored)
        return tensor

    def expert(self, layer: int, expert: int) -> dict[str, Tensor]:
        """Return gate and up [2I, H] as one matrix, and down [H, I]."""
        prefix = f"model.layers.{layer}.mlp.experts."
        if prefix + "gate_up_proj" in self._names:
            stacked = {
                name: self._slice(prefix + name, expert) for name in ("gate_up_proj", "down_proj")
            }
            return stacked
        gate, down, up = (self.tensor(f"{prefix}{expert}.w{number}.weight") for number in (1, 2, 3))
        return {"gate_up_proj": torch.cat([gate, up]), "down_proj": down}

    def _slice(self, name: str, expert: int) -> Tensor:
        stored = self._names[name]
        tensor: Tensor = self._files[stored].get_slice(stored)[expert]
        return tensor


def _model_name(name: str) -> str:
    return name.replace(".block_sparse_moe.", ".mlp.")


@contextmanager
def _open_source(path: Path) -> Iterator[_Source]:
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder.")
    config = read_json(path / "config.json")
    if config.get("model_type") != "mixtral" or config.get("quantization_config"):
        kind = config.get("quantization_config") or config.get("model_type")
        raise CheckpointError(f"{path}: no unquantized Mixtral ({kind}).")
    try:
        with ExitStack() as stack:
            files: dict[str, Any] = {}
            for shard in _source_shards(path):
                read_shard(shard)  # says clearly what is wrong with a file
                file = stack.enter_context(safe_open(shard, "pt"))
                files |= dict.fromkeys(file.keys(), file)
            yield _Source(path, config, files)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: a safetensors file is damaged ({error}).") from error


def _source_shards(path: Path) -> list[Path]:
    if not (path / INDEX_NAME).exists():
        return [path / "model.safetensors"]
    weight_map = read_json(path / INDEX_NAME).get("weight_map")
    names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    if not names or any(Path(str(name)).name != name for name in names):
        raise CheckpointError(f"{path / INDEX_NAME}: lists no files, or files outside the folder.")
    return [path / name for name in names]


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside the target; what is left of it at the end is removed."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        folder.chmod(0o755)
    except OSError as error:
        raise CheckpointError(f"{target}: can't be written ({error.strerror}).") from error
    try:
        yield folder
    except OSError as error:
        raise CheckpointError(f"{target}: can't be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_trunk(reader: _Source, folder: Path) -> Shard:
    names = [name for name in reader.trunk_names if not _LAYER.match(name)]
    return _write(
        folder / TRUNK_NAME, {name: NewTensor.whole(reader.tensor(name)) for name in names}
    )


def _write_layer(reader: _Source, folder: Path, layer: int, scheme: Scheme) -> Shard:
    tensors = {experts_tensor(layer): _expert_records(reader, layer, scheme)}
    for name in reader.trunk_names:
        if (match := _LAYER.match(name)) and int(match[1]) == layer:
            tensor = reader.tensor(name)
            tensors[name] = NewTensor.whole(
                _attention_record(tensor, scheme) if _ATTENTION.search(name) else tensor
            )
    return _write(folder / layer_file(layer), tensors)


def _attention_record(weight: Tensor, scheme: Scheme) -> Tensor:
    layout = RecordLayout(scheme.attention, (("weight", tuple(weight.shape)),))
    return layout.pack({"weight": QuantizedTensor.quantize(weight, scheme.attention)})


def _expert_records(reader: _Source, layer: int, scheme: Scheme) -> NewTensor:
    shapes = tuple((name, tuple(w.shape)) for name, w in reader.expert(layer, 0).items())
    layout = RecordLayout(scheme.experts, shapes)

    def records() -> Iterator[Tensor]:
        for expert in range(reader.num_experts):
            matrices = reader.expert(layer, expert)
            quantized = {
                name: QuantizedTensor.quantize(weight, scheme.experts)
                for name, weight in matrices.items()
            }
            record = torch.zeros(layout.stride, dtype=torch.uint8)
            record[: layout.nbytes] = layout.pack(quantized)
            yield record

    shape = (reader.num_experts, layout.stride)
    return NewTensor(torch.uint8, shape, reader.num_experts, records())


def _write(path: Path, tensors: Mapping[str, NewTensor]) -> Shard:
    write_shard(path, tensors, {})
    return read_shard(path)


def _write_index(shards: list[Shard], folder: Path) -> None:
    index = {
        "metadata": {
            "total_size": sum(e.nbytes for shard in shards for e in shard.tensors.values()),
            "header_crc32": {shard.path.name: f"{shard.header_crc32:08x}" for shard in shards},
        },
        "weight_map": {name: shard.path.name for shard in shards for name in shard.tensors},
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_settings(reader: _Source, folder: Path, scheme: Scheme) -> None:
    config = {**reader.config, "quantization_config": quantization_settings(scheme)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in _COPIED:
        if (reader.path / name).is_file():
            shutil.copyfile(reader.path / name, folder / name)
