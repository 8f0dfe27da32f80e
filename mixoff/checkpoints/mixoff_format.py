"""A mixoff checkpoint on disk: which tensor lies in which file. Knows layouts; builds no model.

A folder in Hugging Face's form, which transformers opens once `mixoff.register` was called:

- ``config.json``: the model's own settings, and under ``quantization_config`` mixoff's: the
  format's version and the scheme of attention and experts.
- ``trunk.safetensors``: embeddings, last norm, head. ``layer-00000.safetensors`` and on: a layer's
  experts as one tensor of bytes [experts, stride], then the rest of the layer. Each expert is one
  record of bytes (`mixoff.tiers.record`) that begins on a page. Attention matrices are records too.
- ``model.safetensors.index.json``: which tensor is in which file, and the CRC-32 of each header;
  headers hold the CRC-32 of each record and tensor.

Packed tensors keep the names of the weights that they replace, so that a loader that knows nothing
of mixoff fails on their shapes instead of initializing experts at random.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixoff.checkpoints.folder import CheckpointFolder
from mixoff.checkpoints.quantization_config import (
    FORMAT_VERSION,
    QUANT_METHOD,
    scheme_from_settings,
)
from mixoff.checkpoints.safetensors_read import DTYPES, Shard, files_beside, read_shards
from mixoff.errors import CheckpointError, ConfigError
from mixoff.families import Architecture, architecture_of
from mixoff.quantization import Quantization, Scheme, Shape
from mixoff.safe_json import quoted
from mixoff.tiers.record import RecordLayout, RecordLocation

NON_EXPERT_FILE = "trunk.safetensors"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def layer_file(layer: int) -> str:
    """Return the name of a layer's file."""
    return f"layer-{layer:05d}.safetensors"


def expert_layout(quantization: Quantization, architecture: Architecture) -> RecordLayout:
    """Return where the tensors of an expert lie in its record: gate over up, and down.

    Raises
    ------
    ConfigError
        If matrices of such sizes can't be stored so.
    """
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    gate_up = [(2 * inner, hidden)] if quantization.joins_rows else [(inner, hidden)] * 2
    matrices = (*(("gate_up_proj", shape) for shape in gate_up), ("down_proj", (hidden, inner)))
    return RecordLayout(quantization, matrices)


def layer_layouts(scheme: Scheme, architecture: Architecture) -> list[RecordLayout]:
    """Return where the tensors of each layer's experts lie in their records.

    Raises
    ------
    ConfigError
        If matrices of such sizes can't be stored so.
    """
    methods = (scheme.experts, *scheme.layer_experts.values())
    layouts = {method: expert_layout(method, architecture) for method in methods}
    return [layouts[scheme.experts_of(layer)] for layer in range(architecture.num_layers)]


@dataclass(frozen=True)
class NonExpertTensor:
    """A tensor that is no expert, as the model has it; a packed matrix is bytes [nbytes]."""

    dtype: torch.dtype
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class MixoffCheckpoint:
    """An opened checkpoint: its settings, and its files' headers, checked against each other.

    Nothing of a tensor is read before it is needed.
    """

    path: Path
    config: Mapping[str, Any]
    architecture: Architecture
    scheme: Scheme
    shards: Mapping[str, Shard]

    format = f"mixoff {FORMAT_VERSION}"

    @classmethod
    def open(cls, folder: CheckpointFolder) -> "MixoffCheckpoint":
        """Open a folder that `mixoff.quantize_checkpoint` wrote.

        Raises
        ------
        CheckpointError
            If it is of another format, or its files don't fit together.
        """
        scheme = _read_scheme(folder)
        architecture = architecture_of(folder.config, folder.config_path)
        _refuse_other_weights(folder.path)
        shards = _read_shards(folder)
        checkpoint = cls(folder.path, folder.config, architecture, scheme, shards)
        checkpoint._check_experts()
        checkpoint._check_non_expert()
        return checkpoint

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self.architecture.num_layers

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        return self.architecture.num_experts

    def expert_layouts(self) -> list[list[RecordLayout]]:
        """Return where the tensors of each record lie in it, ``[layer][expert]``."""
        return [[layout] * self.num_experts for layout in self._layer_layouts]

    def expert_locations(self) -> list[list[RecordLocation]]:
        """Return where each layer's records lie on disk, ``[layer][expert]``."""
        locations = []
        for layer, layout in enumerate(self._layer_layouts):
            shard, name = self.shards[layer_file(layer)], self.architecture.experts_tensor(layer)
            start = shard.tensors[name].offset
            locations.append(
                [
                    RecordLocation(shard.path, start + expert * layout.stride, layout.stride, crc)
                    for expert, crc in enumerate(shard.checksums[name])
                ]
            )
        return locations

    @cached_property
    def _layer_layouts(self) -> list[RecordLayout]:
        return layer_layouts(self.scheme, self.architecture)

    @property
    def experts_nbytes(self) -> int:
        """Bytes of all experts' records on disk."""
        return sum(place.nbytes for layer in self.expert_locations() for place in layer)

    def attention_layout(self, name: str, shape: Shape) -> RecordLayout:
        """Return where the parts of an attention matrix lie in the record of this name."""
        return RecordLayout(self.scheme.attention, (("weight", shape),))

    @cached_property
    def non_expert(self) -> dict[str, NonExpertTensor]:
        """The tensors that are no experts, under the names that the model has for them."""
        experts = {self.architecture.experts_tensor(layer) for layer in range(self.num_layers)}
        return {
            name: NonExpertTensor(DTYPES[entry.dtype], entry.shape)
            for shard in self.shards.values()
            for name, entry in shard.tensors.items()
            if name not in experts
        }

    def non_expert_state(self) -> dict[str, Tensor] | None:
        """Return None: transformers reads the non-expert parameters by itself."""
        return None

    def verify(self) -> None:
        """Compare all that is no expert with its checksums; experts are verified as they are read.

        Raises
        ------
        CheckpointError
            If a tensor is damaged, or a scale of attention is non-finite.
        """
        shapes = dict(self.architecture.non_expert_shapes())
        for shard in self.shards.values():
            shard.verify(name for name in shard.tensors if name in self.non_expert)
        for shard in self.shards.values():
            for name in shard.tensors:
                if name not in shapes or not self.architecture.is_packed(name):
                    continue
                layout = self.attention_layout(name, shapes[name])
                if part := layout.first_nonfinite(shard.read(name)):
                    raise CheckpointError(
                        f"{shard.path}: {name}: {part} holds a non-finite number."
                    )

    def _check_non_expert(self) -> None:
        """Refuse tensors that aren't those of config.json before memory is taken for them."""
        for name, matrix in self.architecture.non_expert_shapes():
            entry, packed = self.non_expert.get(name), self.architecture.is_packed(name)
            shape = self._packed_shape(name, matrix) if packed else matrix
            dtypes = [torch.uint8] if packed else _FLOATS
            if entry is None or entry.shape != shape or entry.dtype not in dtypes:
                raise CheckpointError(
                    f"{self.path}: {name} is {entry.shape if entry else 'missing'}; config.json "
                    f"asks for {shape}: fetch or convert the checkpoint again."
                )

    def _packed_shape(self, name: str, shape: Shape) -> Shape:
        try:
            return (self.attention_layout(name, shape).nbytes,)
        except ConfigError as error:
            raise CheckpointError(f"{self.path}: {name}: {error}") from None

    def _check_experts(self) -> None:
        try:
            if len(self.shards) != 1 + self.num_layers:
                raise ValueError(f"{len(self.shards)} files for {self.num_layers} layers")
            if unknown := self.scheme.layer_experts.keys() - set(range(self.num_layers)):
                raise ValueError(f"layer_experts names layer {min(unknown)}")
            for layer, layout in enumerate(self._layer_layouts):
                self._check_records(layer, layout.stride)
            self.non_expert  # noqa: B018 - an unknown type is refused here
        except (KeyError, ValueError, TypeError, ArithmeticError, ConfigError) as error:
            raise CheckpointError(
                f"{self.path}: config.json and the files don't fit together ({error})."
            ) from None

    def _check_records(self, layer: int, stride: int) -> None:
        shard, name = self.shards[layer_file(layer)], self.architecture.experts_tensor(layer)
        entry, expected = shard.tensors[name], (self.num_experts, stride)
        actual = entry.shape if entry.dtype == "U8" else entry.dtype
        if actual != expected or len(shard.checksums[name]) != self.num_experts:
            raise CheckpointError(
                f"{shard.path}: experts of {actual} bytes where config.json's settings "
                f"ask for {expected}: config.json was changed or is of another checkpoint."
            )


def _read_scheme(folder: CheckpointFolder) -> Scheme:
    settings = folder.config.get("quantization_config")
    if not isinstance(settings, dict) or settings.get("quant_method") != QUANT_METHOD:
        raise CheckpointError(
            f"{folder.path}: no mixoff checkpoint ({_kind_of(settings)}): "
            "make one of a Mixtral in Hugging Face's form with mixoff.quantize_checkpoint."
        )
    try:
        return scheme_from_settings(settings)
    except ConfigError as error:
        raise CheckpointError(f"{folder.config_path}: {error}") from None


def _refuse_other_weights(path: Path) -> None:
    """Refuse files that transformers would read in place of those that the index names."""
    for name in ("model.safetensors", "adapter_config.json"):
        if (path / name).exists():
            raise CheckpointError(
                f"{path / name}: no file of a mixoff checkpoint, and transformers would read it "
                "instead of one: remove it."
            )


def _kind_of(settings: object) -> str:
    if isinstance(settings, dict):
        return f"its quantization is {quoted(settings.get('quant_method'))}"
    return "its config.json has no quantization"


def _read_shards(folder: CheckpointFolder) -> dict[str, Shard]:
    index, weight_map, metadata = folder.index_path, folder.weight_map, folder.index.get("metadata")
    headers = metadata.get("header_crc32") if isinstance(metadata, dict) else None
    if not isinstance(headers, dict):
        raise CheckpointError(f"{index}: lists no files.")
    unknown = [f for f in weight_map.values() if not isinstance(f, str) or f not in headers]
    if unknown:
        raise CheckpointError(f"{index}: {quoted(unknown[0])} is no file of this checkpoint.")
    listed: dict[str, set[str]] = {name: set() for name in headers}
    for tensor, name in weight_map.items():
        listed[name].add(tensor)
    names = files_beside(index, headers)
    shards = {}
    for name, shard in zip(names, read_shards(folder.path / name for name in names), strict=True):
        shards[name] = shard
        if f"{shard.header_crc32:08x}" != headers[name] or listed[name] != set(shard.tensors):
            raise CheckpointError(
                f"{shard.path}: its header is damaged or of another checkpoint: "
                "fetch or convert the checkpoint again."
            )
    return shards
