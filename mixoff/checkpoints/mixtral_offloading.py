"""The layout that mixtral-offloading released, read as it is. Knows its names and its files.

- ``config.json``: a Mixtral's settings; how it is quantized follows from the tensors' shapes.
- ``model.safetensors.index.json``: which tensor is in which file. One file holds the non-expert
  parameters, and one each expert: w1 (gate), w2 (down), w3 (up). There the names begin with
  ``w1.``; the index has them with ``model.layers.L.block_sparse_moe.experts.E.`` before.
- Matrices of attention and experts are `mixoff.quantization.HQQAxis0`; all else is as it is.

No file holds a checksum: names, types and shapes can be checked, and that scales are finite.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixoff.checkpoints.folder import INDEX_NAME, CheckpointFolder
from mixoff.checkpoints.mixoff_format import NonExpertTensor
from mixoff.checkpoints.safetensors_read import (
    DTYPES,
    Shard,
    TensorEntry,
    files_beside,
    read_shards,
)
from mixoff.errors import CheckpointError, ConfigError
from mixoff.families import Architecture, architecture_of
from mixoff.quantization import HQQAxis0, PartSpecs, QuantizedTensor, Scheme, Shape
from mixoff.tiers.record import RecordLayout, RecordLocation

Headers = Mapping[str, Shard]  # by file name
_FETCH_AGAIN = "fetch the checkpoint again."
_PARTS = tuple(HQQAxis0().part_specs((256, 256)))
_FLOATS = ("F16", "BF16", "F32")
_FIRST_EXPERT = "model.layers.0.block_sparse_moe.experts.0."


def is_mixtral_offloading(weight_map: object) -> bool:
    """Return whether an index maps names that only this layout has."""
    return isinstance(weight_map, dict) and _FIRST_EXPERT + "w1.W_q" in weight_map


@dataclass(frozen=True)
class MixtralOffloadingCheckpoint:
    """An opened checkpoint of this layout: its settings and its files' headers, checked.

    Nothing of a tensor is read before it is needed.
    """

    path: Path
    config: Mapping[str, Any]
    architecture: Architecture
    files: Mapping[str, Shard]  # by the index's name of each tensor

    format = "mixtral-offloading"

    @classmethod
    def open(
        cls, folder: CheckpointFolder, headers: Headers | None = None
    ) -> "MixtralOffloadingCheckpoint":
        """Open a folder in this layout; its files may lie elsewhere if their headers are passed.

        Raises
        ------
        CheckpointError
            If a file or a tensor is missing, or doesn't fit the others or ``config.json``.
        """
        architecture = architecture_of(folder.config, folder.config_path)
        shards = _read_shards(folder, headers)
        checkpoint = cls(folder.path, folder.config, architecture, shards)
        checkpoint._experts, checkpoint.non_expert  # noqa: B018 - errors in them are raised here
        return checkpoint

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self.architecture.num_layers

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        return self.architecture.num_experts

    @cached_property
    def scheme(self) -> Scheme:
        """How attention and experts are stored, by the shapes of all their tensors."""
        return Scheme(
            attention=self._read_off_all(self._attention_matrices()),
            experts=self._read_off_all(self._expert_matrices()),
        )

    def first_scheme(self) -> Scheme:
        """Return how the first matrices are stored; the files of others needn't be known."""
        attention, experts = next(self._attention_matrices()), next(self._expert_matrices())
        return Scheme(self._read_off(*attention), self._read_off(*experts))

    def expert_layouts(self) -> list[list[RecordLayout]]:
        """Return where the tensors of each record lie in it, ``[layer][expert]``."""
        return [[layout for layout, _ in layer] for layer in self._experts]

    def expert_locations(self) -> list[list[RecordLocation]]:
        """Return where each layer's records lie on disk, ``[layer][expert]``."""
        return [[location for _, location in layer] for layer in self._experts]

    @property
    def experts_nbytes(self) -> int:
        """Bytes of all experts' records on disk."""
        return sum(place.nbytes for layer in self.expert_locations() for place in layer)

    def attention_layout(self, name: str, shape: Shape) -> RecordLayout:
        """Return where the parts of an attention matrix lie in the record of this name."""
        return self._attention[name]

    @cached_property
    def non_expert(self) -> dict[str, NonExpertTensor]:
        """The tensors that are no experts, under the names that the model has for them."""
        tensors = {}
        for name, shape in self.architecture.non_expert_shapes():
            if (layout := self._attention.get(name)) is not None:
                tensors[name] = NonExpertTensor(torch.uint8, (layout.nbytes,))
                continue
            shard, entry = self._tensor(_released_name(name))
            if entry.shape != shape or entry.dtype not in _FLOATS:
                raise CheckpointError(
                    f"{shard.path}: {_released_name(name)} is {entry.dtype} {entry.shape}; "
                    f"config.json asks for {shape} in one of {', '.join(_FLOATS)}: {_FETCH_AGAIN}"
                )
            tensors[name] = NonExpertTensor(DTYPES[entry.dtype], shape)
        return tensors

    def non_expert_state(self) -> dict[str, Tensor] | None:
        """Return the non-expert tensors, each matrix of attention packed into one record."""
        return {name: self.tensor(name) for name in self.non_expert}

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the non-expert parameters; a matrix of attention is a record."""
        layout = self._attention.get(name)
        if layout is None:
            return self._read(_released_name(name))
        prefix = name.removesuffix("weight")
        parts = {part: self._read(prefix + part) for part in _PARTS}
        matrix = QuantizedTensor(layout.quantization, layout.shapes[0][1], parts)
        return layout.pack({"weight": matrix})

    def files_of(self, name: str) -> set[str]:
        """Return the names of the files that hold a non-expert tensor, or its parts."""
        parts = [name.removesuffix("weight") + part for part in _PARTS]
        names = parts if name in self._attention else [_released_name(name)]
        return {self._tensor(each)[0].path.name for each in names}

    def verify(self) -> None:
        """Check that all scales and zeros are finite: the files hold no checksums.

        Raises
        ------
        CheckpointError
            If one is not.
        """
        floats = [part for part in _PARTS if not part.endswith("_q")]
        for prefix, _ in chain(self._attention_matrices(), self._expert_matrices()):
            for part in floats:
                shard, _ = self._tensor(prefix + part)
                if not shard.read(_name_in_file(prefix + part)).isfinite().all():
                    raise CheckpointError(
                        f"{shard.path}: {prefix}{part} holds a non-finite number: {_FETCH_AGAIN}"
                    )

    @cached_property
    def _attention(self) -> dict[str, RecordLayout]:
        return {
            f"{prefix}weight": RecordLayout(self.scheme.attention, (("weight", shape),))
            for prefix, shape in self._attention_matrices()
        }

    @cached_property
    def _experts(self) -> list[list[tuple[RecordLayout, RecordLocation]]]:
        experts: list[list[tuple[RecordLayout, RecordLocation]]] = []
        same: dict[RecordLayout, RecordLayout] = {}  # most are equal: one object for all
        for layer in range(self.num_layers):
            experts.append([])
            for expert in range(self.num_experts):
                layout, location = self._expert(layer, expert)
                experts[-1].append((same.setdefault(layout, layout), location))
        listed = sum(name.endswith(".w1.W_q") for name in self.files)
        if listed != self.num_layers * self.num_experts:
            raise CheckpointError(
                f"{self.path / INDEX_NAME}: lists {listed} experts where config.json has "
                f"{self.num_layers} layers of {self.num_experts}: {_FETCH_AGAIN}"
            )
        return experts

    def _expert(self, layer: int, expert: int) -> tuple[RecordLayout, RecordLocation]:
        matrices = list(self._matrices_of(layer, expert))
        names = [prefix + part for _, prefix, _ in matrices for part in _PARTS]
        shards, entries = zip(*map(self._tensor, names), strict=True)
        path, start = shards[0].path, min(entry.offset for entry in entries)
        nbytes = max(entry.offset + entry.nbytes for entry in entries) - start
        if {shard.path for shard in shards} != {path} or nbytes != sum(e.nbytes for e in entries):
            raise CheckpointError(
                f"{path}: other tensors lie between those of "
                f"{names[0].partition('.w1.')[0]}: mixoff reads an expert at once, so write each "
                "into a file of its own."
            )
        layout = RecordLayout(
            self.scheme.experts,
            tuple((matrix, shape) for matrix, _, shape in matrices),
            tuple(entry.offset - start for entry in entries),
        )
        return layout, RecordLocation(path, start, nbytes, None)

    def _attention_matrices(self) -> Iterator[tuple[str, Shape]]:
        """Yield what the names of each attention matrix's parts begin with, and its shape."""
        for name, shape in self.architecture.non_expert_shapes():
            if self.architecture.is_packed(name):
                yield name.removesuffix("weight"), shape

    def _expert_matrices(self) -> Iterator[tuple[str, Shape]]:
        """Yield what the names of each expert matrix's parts begin with, and its shape."""
        for layer in range(self.num_layers):
            for expert in range(self.num_experts):
                for _, prefix, shape in self._matrices_of(layer, expert):
                    yield prefix, shape

    def _matrices_of(self, layer: int, expert: int) -> Iterator[tuple[str, str, Shape]]:
        """Yield an expert's w1, w3 and w2, with their matrix' name in a record: gate over up."""
        for matrix, tensors in self.architecture.expert_tensors(layer, expert).items():
            for name, shape in tensors:
                yield matrix, _released_name(name).removesuffix("weight"), shape

    def _read_off_all(self, matrices: Iterable[tuple[str, Shape]]) -> HQQAxis0:
        stored = {prefix: self._read_off(prefix, shape) for prefix, shape in matrices}
        first, *others = stored
        for second in others:
            if stored[second] != stored[first]:
                raise CheckpointError(
                    f"{self.path}: {first}* is stored as {stored[first]} and {second}* as "
                    f"{stored[second]}, or their shapes aren't those of config.json: "
                    "mixoff reads one method for all attention and one for all experts."
                )
        return stored[first]

    def _read_off(self, prefix: str, shape: Shape) -> HQQAxis0:
        specs: PartSpecs = {}
        for part in _PARTS:
            shard, entry = self._tensor(prefix + part)
            dtype = DTYPES.get(entry.dtype)
            if dtype is None or entry.offset % dtype.itemsize:
                raise CheckpointError(
                    f"{shard.path}: {prefix}{part} is {entry.dtype} and begins at byte "
                    f"{entry.offset}: no type that mixoff reads, or no multiple of its size; "
                    "write the file again with safetensors."
                )
            specs[part] = dtype, entry.shape
        try:
            return HQQAxis0.read_off(specs, shape)
        except ConfigError as error:
            raise CheckpointError(
                f"{shard.path}: {prefix.removesuffix('.')} is no {shape[0]} x {shape[1]} matrix, "
                f"as config.json asks for ({error.args[0].removesuffix('.')}): {_FETCH_AGAIN}"
            ) from None

    def _read(self, name: str) -> Tensor:
        shard, _ = self._tensor(name)
        return shard.read(_name_in_file(name))

    def _tensor(self, name: str) -> tuple[Shard, TensorEntry]:
        if name not in self.files:
            raise CheckpointError(f"{self.path / INDEX_NAME}: {name} is missing: {_FETCH_AGAIN}")
        shard = self.files[name]
        if (stored := _name_in_file(name)) not in shard.tensors:
            raise CheckpointError(
                f"{shard.path}: {stored} is missing, though the index places {name} there: "
                f"{_FETCH_AGAIN}"
            )
        return shard, shard.tensors[stored]


def first_scheme(folder: CheckpointFolder, header: Callable[[str], Shard]) -> Scheme:
    """Return how a folder's first matrices are stored, by the headers of their files alone.

    Parameters
    ----------
    folder
        Its settings and index.
    header
        Returns the header of a file by its name.

    Raises
    ------
    CheckpointError
        If a tensor is missing, or doesn't fit ``config.json``.
    """
    architecture = architecture_of(folder.config, folder.config_path)
    firsts = ("model.layers.0.self_attn.q_proj.", _FIRST_EXPERT + "w1.")
    files = {name: file for name, file in folder.weight_map.items() if name.startswith(firsts)}
    headers = {file: header(file) for file in files_beside(folder.index_path, files.values())}
    shards = {name: headers[file] for name, file in files.items()}
    checkpoint = MixtralOffloadingCheckpoint(folder.path, folder.config, architecture, shards)
    return checkpoint.first_scheme()


def _name_in_file(name: str) -> str:
    """Return a tensor's name in its file, where experts' names are short."""
    return name.partition(".block_sparse_moe.experts.")[2].partition(".")[2] or name


def _released_name(name: str) -> str:
    return name.replace(".mlp.", ".block_sparse_moe.")


def _read_shards(folder: CheckpointFolder, headers: Headers | None) -> dict[str, Shard]:
    """Return the file of each tensor by the index's name of it."""
    files = files_beside(folder.index_path, folder.weight_map.values())
    if headers is None:
        shards = read_shards(folder.path / file for file in files)
        headers = dict(zip(files, shards, strict=True))
    return {name: headers[file] for name, file in folder.weight_map.items()}
