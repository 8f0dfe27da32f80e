"""A checkpoint with larger experts and the same routing, to study transfers. Knows no speeds.

Rows of random numbers are appended to an expert's gate and up, and columns of zeros to its down, so
that the new rows' outputs are multiplied by zero: routing and logits stay, bytes and work of an
expert grow. A small model with real routing then moves records as large as a large one's.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixoff.checkpoints.folder import CheckpointFolder
from mixoff.checkpoints.mixoff_format import MixoffCheckpoint
from mixoff.checkpoints.safetensors_read import read_shard
from mixoff.checkpoints.source_files import FolderFiles, SourceFiles
from mixoff.convert.companions import small_files
from mixoff.convert.matrices import Weights
from mixoff.convert.output_files import units_of
from mixoff.convert.partial_folder import named_errors, write_durably
from mixoff.errors import ConfigError
from mixoff.families import architecture_of
from mixoff.quantization import PackedMatrix, QuantizedTensor, Scheme, Unquantized
from mixoff.tiers.record import RecordLayout

# H hidden size, I intermediate size of the source, J that of the target


def inflate_checkpoint(
    source: str | Path, target: str | Path, *, intermediate_size: int, seed: int = 0
) -> Path:
    """Write a mixoff checkpoint anew with larger experts, and return the new folder.

    Experts are stored in float32, 12 bytes for each of hidden size times intermediate size; all
    else stays as it is. Logits are the source's but for the rounding of sums, which are cut into
    other pieces when there is more to sum.

    Parameters
    ----------
    source
        A folder that `mixoff.quantize_checkpoint` wrote.
    target
        The folder to make; it must not exist yet.
    intermediate_size
        Rows of gate and of up, at least as many as the source has.
    seed
        Of the random numbers.

    Raises
    ------
    CheckpointError
        If the source can't be read, or the target can't be written.
    ConfigError
        If the target exists, or the experts would shrink.
    """
    target = Path(target)
    if target.exists():
        raise ConfigError(f"{target}: exists already: give another target.")
    with named_errors(target):
        matrices = _Inflated(Path(source), intermediate_size, seed)
        units = units_of(matrices, lambda _: None)
        target.mkdir(parents=True)
        try:
            for unit in units:
                unit.write(target / unit.name)
            crcs = {unit.name: read_shard(target / unit.name).header_crc32 for unit in units}
            for name, content in small_files(matrices, units, crcs).items():
                write_durably(target / name, content)
        except BaseException:
            shutil.rmtree(target)
            raise
    return target


class _Inflated:
    """A checkpoint's matrices as they will be stored; it is its own `Weights`, too."""

    def __init__(self, source: Path, inner: int, seed: int) -> None:
        self.weights: Weights = self
        self._checkpoint = MixoffCheckpoint.open(CheckpointFolder.open(source))
        old = self._checkpoint.architecture
        if inner < (least := old.intermediate_size):
            raise ConfigError(f"intermediate_size={inner}: the source has {least}: give more.")
        self.files: SourceFiles = FolderFiles(source)
        self.config: Mapping[str, Any] = {
            **self._checkpoint.config,
            "intermediate_size": inner,
        }
        self.architecture = architecture_of(self.config, source / "config.json")
        self.scheme = Scheme(attention=self._checkpoint.scheme.attention, experts=_PLAIN)
        self._inner = inner
        self._chance = torch.Generator().manual_seed(seed)
        self._layouts = self._checkpoint.expert_layouts()
        self._attention = dict(old.non_expert_shapes())

    def dtype(self, name: str) -> torch.dtype:
        """Return the type of a tensor that is no matrix."""
        return self._checkpoint.non_expert[name].dtype

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that is no expert, as it is stored."""
        return self._checkpoint.shards[self._file_of(name)].read(name)

    def attention(self, name: str) -> PackedMatrix:
        """Return a matrix of attention."""
        layout = self._checkpoint.attention_layout(name, self._attention[name])
        return layout.tensors(self.tensor(name))["weight"]

    def expert(self, layer: int, expert: int) -> Iterator[tuple[str, Any]]:
        """Yield gate and up [2J, H] as one matrix, then down [H, J]."""
        name = self.architecture.experts_tensor(layer)
        record = self._checkpoint.shards[self._file_of(name)].read(name, expert)
        matrices = _matrices(self._layouts[layer][expert], record)
        gate, up = matrices["gate_up_proj"].chunk(2)  # [I, H]
        yield "gate_up_proj", _plain(torch.cat([self._longer(gate), self._longer(up)]))
        down = matrices["down_proj"]  # [H, I]
        wider = down.new_zeros(len(down), self._inner)
        wider[:, : down.shape[1]] = down
        yield "down_proj", _plain(wider)

    def _longer(self, matrix: Tensor) -> Tensor:
        """Return [J, H]: the rows of [I, H], and random ones as large as those."""
        more = torch.empty(self._inner - len(matrix), matrix.shape[1])
        return torch.cat([matrix, more.normal_(0, float(matrix.std()), generator=self._chance)])

    def files_of(self, names: Iterable[str]) -> set[str]:
        """Return the names of the files that hold tensors that are no experts."""
        return {self._file_of(name) for name in names}

    def files_of_experts(self, layer: int) -> set[str]:
        """Return the names of the files that hold experts of a layer."""
        return {self._file_of(self.architecture.experts_tensor(layer))}

    def _file_of(self, tensor: str) -> str:
        return next(name for name, s in self._checkpoint.shards.items() if tensor in s.tensors)


_PLAIN = Unquantized("float32")


def _plain(matrix: Tensor) -> QuantizedTensor:
    return QuantizedTensor.quantize(matrix, _PLAIN)


def _matrices(layout: RecordLayout, record: Tensor) -> dict[str, Tensor]:
    return {name: matrix.dequantize() for name, matrix in layout.tensors(record).items()}
