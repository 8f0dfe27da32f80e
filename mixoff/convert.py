"""From a Hugging Face Mixtral to a mixoff checkpoint, a layer at a time. Knows both forms."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mixoff.checkpoint import (
    INDEX_NAME,
    TRUNK_NAME,
    experts_tensor,
    layer_file,
    quantization_settings,
)
from mixoff.documents import read_json, shortened
from mixoff.errors import CheckpointError, ConfigError
from mixoff.mixtral import Mixtral
from mixoff.quantization import Quantization, QuantizedTensor, Scheme, Shape
from mixoff.records import RecordLayout
from mixoff.shards import (
    NewTensor,
    Shard,
    names_a_file_beside,
    read_shard,
    read_shards,
    write_shard,
)

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
_FLOATS = ("F32", "F16", "BF16")


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
    reader = _open_source(source)
    with _new_folder(target) as folder:
        shards = [_write_trunk(reader, folder)]
        layers = range(reader.model.num_layers)
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
    """A Hugging Face Mixtral's tensors, under the names that transformers' models have for them."""

    def __init__(self, path: Path, config: Mapping[str, Any], shards: Iterable[Shard]) -> None:
        self.path = path
        self.config = config
        self.model = Mixtral(config, path / "config.json")
        self._home = {
            _model_name(name): (shard, name) for shard in shards for name in shard.tensors
        }
        self._check()

    def tensor(self, name: str, row: int | None = None) -> Tensor:
        shard, stored = self._home[name]
        return shard.read(stored, row)

    def expert(self, layer: int, expert: int) -> dict[str, Tensor]:
        """Return gate and up [2I, H] as one matrix, and down [H, I]."""
        prefix = f"model.layers.{layer}.mlp.experts."
        if self._is_stacked(layer):
            return {n: self.tensor(prefix + n, expert) for n in ("gate_up_proj", "down_proj")}
        gate, down, up = (self.tensor(f"{prefix}{expert}.w{number}.weight") for number in (1, 2, 3))
        return {"gate_up_proj": torch.cat([gate, up]), "down_proj": down}

    def _expert_shapes(self) -> Iterator[tuple[str, Shape]]:
        shapes = self.model.expert_shapes()
        inner, hidden = shapes["w1"]
        for layer in range(self.model.num_layers):
            prefix = f"model.layers.{layer}.mlp.experts."
            if self._is_stacked(layer):
                yield prefix + "gate_up_proj", (self.model.num_experts, 2 * inner, hidden)
                yield prefix + "down_proj", (self.model.num_experts, hidden, inner)
                continue
            for expert in range(self.model.num_experts):
                for matrix, shape in shapes.items():
                    yield f"{prefix}{expert}.{matrix}.weight", shape

    def _is_stacked(self, layer: int) -> bool:
        return experts_tensor(layer) in self._home

    def _check(self) -> None:
        for name, shape in chain(self.model.trunk_shapes(), self._expert_shapes()):
            if name not in self._home:
                raise CheckpointError(
                    f"{self.path}: {name} is missing: fetch the checkpoint again."
                )
            shard, stored = self._home[name]
            entry = shard.tensors[stored]
            if entry.shape != shape or entry.dtype not in _FLOATS:
                raise CheckpointError(
                    f"{shard.path}: {name} is {entry.dtype} {entry.shape}; config.json asks for "
                    f"{shape}, unquantized ({', '.join(_FLOATS)}): fetch the checkpoint again."
                )


def _model_name(name: str) -> str:
    return name.replace(".block_sparse_moe.", ".mlp.")


def _open_source(path: Path) -> _Source:
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder.")
    config = read_json(path / "config.json")
    if config.get("model_type") != "mixtral" or config.get("quantization_config"):
        kind = config.get("quantization_config") or config.get("model_type")
        raise CheckpointError(
            f"{path / 'config.json'}: no unquantized Mixtral ({shortened(str(kind))})."
        )
    Mixtral(config, path / "config.json").check()
    return _Source(path, config, read_shards(_source_shards(path)))


def _source_shards(path: Path) -> list[Path]:
    if not (path / INDEX_NAME).exists() and not (path / INDEX_NAME).is_symlink():
        return [path / "model.safetensors"]
    weight_map = read_json(path / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path / INDEX_NAME}: lists no files.")
    return [path / name for name in names_a_file_beside(path / INDEX_NAME, weight_map.values())]


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside the target; what is left of it at the end is removed."""
    absent = [parent for parent in target.parents if not parent.exists()]  # the nearest first
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
        with suppress(OSError):  # the first that isn't empty, since the target is there
            for parent in absent:
                parent.rmdir()


def _write_trunk(reader: _Source, folder: Path) -> Shard:
    names = [
        name for name, _ in reader.model.trunk_shapes() if not name.startswith("model.layers.")
    ]
    tensors = {name: NewTensor.whole(reader.tensor(name)) for name in names}
    return _write(folder / TRUNK_NAME, tensors)


def _write_layer(reader: _Source, folder: Path, layer: int, scheme: Scheme) -> Shard:
    tensors = {experts_tensor(layer): _expert_records(reader, layer, scheme)}
    for name, _ in reader.model.trunk_shapes():
        if name.startswith(f"model.layers.{layer}."):
            tensor = reader.tensor(name)
            if _ATTENTION.search(name):
                tensor = _attention_record(tensor, scheme, f"{reader.path}: {name}")
            tensors[name] = NewTensor.whole(tensor)
    return _write(folder / layer_file(layer), tensors)


def _attention_record(weight: Tensor, scheme: Scheme, what: str) -> Tensor:
    layout = RecordLayout(scheme.attention, (("weight", tuple(weight.shape)),))
    return layout.pack({"weight": _quantized(weight, scheme.attention, what)})


def _quantized(weight: Tensor, quantization: Quantization, what: str) -> QuantizedTensor:
    try:
        return QuantizedTensor.quantize(weight, quantization)
    except ConfigError as error:  # the shape suits: the weights don't
        raise CheckpointError(f"{what}: {error}") from None


def _expert_records(reader: _Source, layer: int, scheme: Scheme) -> NewTensor:
    shapes = tuple((name, tuple(w.shape)) for name, w in reader.expert(layer, 0).items())
    layout = RecordLayout(scheme.experts, shapes)

    def records() -> Iterator[Tensor]:
        for expert in range(reader.model.num_experts):
            where = f"{reader.path}: layer {layer}'s expert {expert}"
            quantized = {
                name: _quantized(weight, scheme.experts, f"{where}, {name}")
                for name, weight in reader.expert(layer, expert).items()
            }
            record = torch.zeros(layout.stride, dtype=torch.uint8)
            record[: layout.nbytes] = layout.pack(quantized)
            yield record

    shape = (reader.model.num_experts, layout.stride)
    return NewTensor(torch.uint8, shape, reader.model.num_experts, records())


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
