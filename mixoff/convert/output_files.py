"""The files of weights that a checkpoint will have, and the tensors of each. Knows no disk.

Nothing is read or quantized before a unit is written, but all sizes are known before.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixoff.checkpoints.mixoff_format import (
    NON_EXPERT_FILE,
    expert_layout,
    layer_file,
)
from mixoff.checkpoints.safetensors_read import Shard, read_shard
from mixoff.checkpoints.safetensors_write import NewTensor, is_whole, shard_nbytes, write_shard
from mixoff.convert.matrices import Matrices
from mixoff.quantization import PackedMatrix, Shape
from mixoff.tiers.record import RecordLayout

OnProgress = Callable[[int], None]  # called with the number of weights that were just done


@dataclass(frozen=True)
class _Chunks:
    """Chunks of a tensor, made anew for each iteration."""

    make: Callable[[], Iterator[Tensor]]

    def __iter__(self) -> Iterator[Tensor]:
        return self.make()


@dataclass(frozen=True)
class Unit:
    """A file to be written.

    Parameters
    ----------
    name
        The file's name.
    tensors
        What it holds.
    records
        The layout of each tensor that holds records.
    sources
        The names of the source's files that it is made of.
    num_weights
        How many weights it stands for, by which progress is shown.
    """

    name: str
    tensors: Mapping[str, NewTensor]
    records: Mapping[str, RecordLayout]
    sources: frozenset[str]
    num_weights: int

    @property
    def nbytes(self) -> int:
        """Bytes of the file, its header too."""
        return shard_nbytes(self.tensors, {})

    def write(self, path: Path) -> None:
        """Write the file, and return once it is on the disk."""
        write_shard(path, self.tensors, {})

    def holds(self, shard: Shard) -> bool:
        """Return whether a file's header is the unit's."""
        return is_whole(shard, self.tensors, {})

    def find_damage(self, path: Path) -> str | None:
        """Return what is wrong with the unit's file after reading all of it, or None.

        Raises
        ------
        CheckpointError
            If it can't be read.
        """
        shard = read_shard(path)
        if not self.holds(shard):
            return "its header isn't what was written"
        for name, tensor in self.tensors.items():
            has_rows = name in self.records and len(tensor.shape) > 1
            rows = range(tensor.num_chunks) if has_rows else [None]
            for number, row in enumerate(rows):
                raw = shard.read(name, row)
                if (
                    zlib.crc32(raw.view(-1).view(torch.uint8).numpy().data)
                    != shard.checksums[name][number]
                ):
                    return f"the checksum of {name} differs"
                layout = self.records.get(name)
                if layout and (part := layout.first_nonfinite(raw)):
                    return f"{part} in {name} holds a non-finite number"
        return None


def units_of(matrices: Matrices, on_progress: OnProgress) -> list[Unit]:
    """Return all files to write, in that order: the non-expert parameters, then layer by layer.

    The non-expert parameters are first because they need the source's first and last file: the
    last one is needed by the last layers anyway, and the first one can be removed early.

    Raises
    ------
    ConfigError
        If the scheme doesn't suit the model's shapes.
    """
    architecture = matrices.weights.architecture
    shapes = dict(architecture.non_expert_shapes())
    prefixes = [architecture.layer_prefix(layer) for layer in range(architecture.num_layers)]
    non_expert = [name for name in shapes if not name.startswith(tuple(prefixes))]
    tensors = {name: _plain(matrices, name, shapes[name], on_progress) for name in non_expert}
    sources = frozenset(matrices.weights.files_of(non_expert))
    units = [Unit(NON_EXPERT_FILE, tensors, {}, sources, _num_weights(tensors))]
    for layer, prefix in enumerate(prefixes):
        rest = {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
        units.append(_layer(matrices, layer, rest, on_progress))
    return units


def _layer(
    matrices: Matrices, layer: int, rest: Mapping[str, Shape], on_progress: OnProgress
) -> Unit:
    weights, scheme = matrices.weights, matrices.scheme
    architecture = weights.architecture
    layout = expert_layout(scheme.experts_of(layer), architecture)
    experts = architecture.experts_tensor(layer)
    tensors, records = {experts: _records(matrices, layer, layout, on_progress)}, {experts: layout}
    for name, shape in rest.items():
        if architecture.is_packed(name):
            records[name] = RecordLayout(scheme.attention, (("weight", shape),))
            tensors[name] = _attention(matrices, name, records[name], on_progress)
        else:
            tensors[name] = _plain(matrices, name, shape, on_progress)
    sources = frozenset(weights.files_of(rest) | weights.files_of_experts(layer))
    num_weights = sum(torch.Size(shape).numel() for shape in rest.values())
    expert_weights = 3 * architecture.intermediate_size * architecture.hidden_size
    num_weights += architecture.num_experts * expert_weights
    return Unit(layer_file(layer), tensors, records, sources, num_weights)


def _num_weights(tensors: Mapping[str, NewTensor]) -> int:
    return sum(torch.Size(tensor.shape).numel() for tensor in tensors.values())


def _plain(matrices: Matrices, name: str, shape: Shape, on_progress: OnProgress) -> NewTensor:
    def make() -> Iterator[Tensor]:
        yield matrices.weights.tensor(name)
        on_progress(torch.Size(shape).numel())

    return NewTensor(matrices.weights.dtype(name), shape, 1, _Chunks(make))


def _attention(
    matrices: Matrices, name: str, layout: RecordLayout, on_progress: OnProgress
) -> NewTensor:
    def make() -> Iterator[Tensor]:
        matrix = matrices.attention(name)
        yield layout.pack({"weight": matrix})
        on_progress(torch.Size(matrix.shape).numel())

    return NewTensor(torch.uint8, (layout.nbytes,), 1, _Chunks(make))


def _records(
    matrices: Matrices, layer: int, layout: RecordLayout, on_progress: OnProgress
) -> NewTensor:
    num_experts = matrices.weights.architecture.num_experts

    def make() -> Iterator[Tensor]:
        for expert in range(num_experts):
            record = torch.zeros(layout.stride, dtype=torch.uint8)
            places = layout.tensors(record)
            for name, matrix in matrices.expert(layer, expert):
                _copy(matrix, into=places[name])
                on_progress(torch.Size(matrix.shape).numel())
                del matrix  # before the next one is read
            yield record

    return NewTensor(torch.uint8, (num_experts, layout.stride), num_experts, _Chunks(make))


def _copy(matrix: PackedMatrix, into: PackedMatrix) -> None:
    for place, piece in zip(into.pieces, matrix.pieces, strict=True):
        for part, tensor in place.parts.items():
            tensor.copy_(piece.parts[part])
