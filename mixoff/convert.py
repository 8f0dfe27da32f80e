"""From a Hugging Face Mixtral to a mixoff checkpoint, a layer at a time. Knows both forms."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mixoff.checkpoint import (
    INDEX_NAME,
    TRUNK_NAME,
    expert_layout,
    experts_tensor,
    layer_file,
    quantization_settings,
)
from mixoff.errors import CheckpointError, ConfigError
from mixoff.mixtral import is_attention_matrix
from mixoff.originals import Original
from mixoff.quantization import Quantization, QuantizedTensor, Scheme
from mixoff.records import RecordLayout
from mixoff.shards import NewTensor, Shard, read_shard, write_shard
from mixoff.sources import FolderFiles

_COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


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
    reader = Original(FolderFiles(source))
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


def _write_trunk(reader: Original, folder: Path) -> Shard:
    names = [
        name for name, _ in reader.model.trunk_shapes() if not name.startswith("model.layers.")
    ]
    tensors = {name: NewTensor.whole(reader.tensor(name)) for name in names}
    return _write(folder / TRUNK_NAME, tensors)


def _write_layer(reader: Original, folder: Path, layer: int, scheme: Scheme) -> Shard:
    tensors = {experts_tensor(layer): _expert_records(reader, layer, scheme)}
    for name, _ in reader.model.trunk_shapes():
        if name.startswith(f"model.layers.{layer}."):
            tensor = reader.tensor(name)
            if is_attention_matrix(name):
                tensor = _attention_record(tensor, scheme, f"{reader.files.name}: {name}")
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


def _expert_records(reader: Original, layer: int, scheme: Scheme) -> NewTensor:
    inner, hidden = reader.model.expert_shapes()["w1"]
    quantization = scheme.experts_of(layer)
    layout = expert_layout(quantization, hidden, inner)

    def records() -> Iterator[Tensor]:
        for expert in range(reader.model.num_experts):
            where = f"{reader.files.name}: layer {layer}'s expert {expert}"
            quantized = {
                name: _quantized(weight, quantization, f"{where}, {name}")
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


def _write_settings(reader: Original, folder: Path, scheme: Scheme) -> None:
    config = {**reader.config, "quantization_config": quantization_settings(scheme)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in _COPIED:
        if (reader.files.settings / name).is_file():
            shutil.copyfile(reader.files.settings / name, folder / name)
