"""A model's matrices in the form in which they will be stored. Knows which is quantized how.

`Quantized` makes them of floating point matrices, `Repacked` has them already. Both return one
matrix at a time, so that no layer, and not even an expert, is whole in memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from mixoff.checkpoints.folder import CheckpointFolder
from mixoff.checkpoints.mixtral_offloading import MixtralOffloadingCheckpoint, is_mixtral_offloading
from mixoff.checkpoints.source_files import SourceFiles
from mixoff.checkpoints.unquantized import UnquantizedCheckpoint
from mixoff.errors import CheckpointError, ConfigError
from mixoff.families import Architecture
from mixoff.quantization import (
    PackedMatrix,
    Quantization,
    QuantizedTensor,
    Scheme,
    StackedRows,
)
from mixoff.tiers.aligned import PAGE


class Weights(Protocol):
    """A model's matrices in floating point, and its other tensors as they are stored."""

    files: SourceFiles
    config: Mapping[str, Any]
    architecture: Architecture

    def dtype(self, name: str) -> torch.dtype:
        """Return the type of a tensor that is no matrix."""

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that is no expert."""

    def expert(self, layer: int, expert: int) -> Iterator[tuple[str, Tensor]]:
        """Yield gate and up [2I, H] as one matrix, then down [H, I]."""

    def files_of(self, names: Iterable[str]) -> set[str]:
        """Return the names of the files that hold tensors that are no experts."""

    def files_of_experts(self, layer: int) -> set[str]:
        """Return the names of the files that hold experts of a layer."""


class Released:
    """Dequantized `Weights` of a checkpoint in the layout that mixtral-offloading released.

    Parameters
    ----------
    files
        The files that hold it.
    folder
        Their settings and index.

    Raises
    ------
    CheckpointError
        If they don't fit together.
    """

    def __init__(self, files: SourceFiles, folder: CheckpointFolder) -> None:
        self.files = files
        self.config: Mapping[str, Any] = folder.config
        self.checkpoint = MixtralOffloadingCheckpoint.open(folder, files.headers)
        self.architecture = self.checkpoint.architecture
        self._layouts = self.checkpoint.expert_layouts()
        self._locations = self.checkpoint.expert_locations()

    def dtype(self, name: str) -> torch.dtype:
        """Return the type of a tensor that is no matrix."""
        return self.checkpoint.non_expert[name].dtype

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that is no expert; a matrix of attention is float32."""
        matrix = self.packed_attention(name) if self.architecture.is_packed(name) else None
        return self.checkpoint.tensor(name) if matrix is None else matrix.dequantize()

    def expert(self, layer: int, expert: int) -> Iterator[tuple[str, Tensor]]:
        """Yield gate and up [2I, H] as one float32 matrix, then down [H, I]."""
        for name, matrix in self.packed_expert(layer, expert).items():
            yield name, matrix.dequantize()

    def packed_attention(self, name: str) -> PackedMatrix:
        """Return a matrix of attention as it is stored."""
        layout = self.checkpoint.attention_layout(name, ())
        return layout.tensors(self.checkpoint.tensor(name))["weight"]

    def packed_expert(self, layer: int, expert: int) -> dict[str, PackedMatrix]:
        """Return an expert's matrices as they are stored."""
        location = self._locations[layer][expert]
        start = location.offset % PAGE  # keeps the alignment that the parts have in the file
        record = torch.empty(start + location.nbytes, dtype=torch.uint8)
        shard = self.files.headers[location.file.name]
        shard.read_range(location.offset, record[start:])
        return self._layouts[layer][expert].tensors(record[start:])

    def files_of(self, names: Iterable[str]) -> set[str]:
        """Return the names of the files that hold tensors that are no experts."""
        return {file for name in names for file in self.checkpoint.files_of(name)}

    def files_of_experts(self, layer: int) -> set[str]:
        """Return the names of the files that hold experts of a layer."""
        return {location.file.name for location in self._locations[layer]}


class Matrices(Protocol):
    """A model's matrices as they will be stored."""

    weights: Weights
    scheme: Scheme

    def attention(self, name: str) -> PackedMatrix:
        """Return a matrix of attention."""

    def expert(self, layer: int, expert: int) -> Iterator[tuple[str, PackedMatrix]]:
        """Yield the matrices of an expert's record."""


class Quantized:
    """Matrices that are quantized when they are needed.

    Parameters
    ----------
    weights
        The matrices in floating point.
    scheme
        How each is stored.
    """

    def __init__(self, weights: Weights, scheme: Scheme) -> None:
        self.weights = weights
        self.scheme = scheme

    def attention(self, name: str) -> PackedMatrix:
        """Return a matrix of attention."""
        what = f"{self.weights.files.name}: {name}"
        return _quantized(self.weights.tensor(name), self.scheme.attention, what)

    def expert(self, layer: int, expert: int) -> Iterator[tuple[str, PackedMatrix]]:
        """Yield the matrices of an expert's record."""
        quantization = self.scheme.experts_of(layer)
        for name, weight in self.weights.expert(layer, expert):
            what = f"{self.weights.files.name}: layer {layer}'s expert {expert}, {name}"
            pieces = [weight]
            if name == "gate_up_proj" and not quantization.joins_rows:
                pieces = [*weight.chunk(2)]
            packed = tuple(_quantized(piece, quantization, what) for piece in pieces)
            yield name, StackedRows(packed) if packed[1:] else packed[0]


class Repacked:
    """Matrices of the released layout, with the codes that they have.

    Parameters
    ----------
    weights
        The checkpoint that has them.
    """

    def __init__(self, weights: Released) -> None:
        self.weights: Weights = weights
        self.scheme = weights.checkpoint.scheme
        self._released = weights

    def attention(self, name: str) -> PackedMatrix:
        """Return a matrix of attention."""
        return self._released.packed_attention(name)

    def expert(self, layer: int, expert: int) -> Iterator[tuple[str, PackedMatrix]]:
        """Yield the matrices of an expert's record."""
        yield from self._released.packed_expert(layer, expert).items()


def open_matrices(files: SourceFiles, scheme: Scheme | None) -> Matrices:
    """Return the matrices of a source, quantized by a scheme; by default as `Scheme()` has them.

    The released layout keeps its codes where no scheme is passed.

    Raises
    ------
    CheckpointError
        If the source can't be converted.
    ConfigError
        If the scheme names a layer that the model lacks.
    """
    folder = CheckpointFolder.open(files.settings)
    weights: Weights
    if folder.index_path.exists() and is_mixtral_offloading(folder.index.get("weight_map")):
        weights = Released(files, folder)
        if scheme is None:
            return Repacked(weights)
    else:
        weights = UnquantizedCheckpoint(files, folder)
    scheme, layers = scheme or Scheme(), weights.architecture.num_layers
    if unknown := sorted(set(scheme.layer_experts) - set(range(layers))):
        raise ConfigError(
            f"layer_experts names layer {unknown[0]}: the model has {layers}, 0 to {layers - 1}."
        )
    return Quantized(weights, scheme)


def _quantized(weight: Tensor, quantization: Quantization, what: str) -> QuantizedTensor:
    try:
        return QuantizedTensor.quantize(weight, quantization)
    except ConfigError as error:  # of the weights: shapes were checked before
        raise CheckpointError(f"{what}: {error}") from None
