"""An unquantized model in each form that people store it in. Knows names and shapes of tensors.

Experts one by one or stacked, in one file or many, in float32, float16 or bfloat16, with a head of
its own or the embeddings as head.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mixoff.checkpoints.folder import CheckpointFolder
from mixoff.checkpoints.quantization_config import QUANT_METHOD
from mixoff.checkpoints.safetensors_read import DTYPES, Shard
from mixoff.checkpoints.source_files import SourceFiles
from mixoff.errors import CheckpointError
from mixoff.families import architecture_of
from mixoff.quantization import Shape
from mixoff.safe_json import quoted

_FLOATS = ("F32", "F16", "BF16")


class UnquantizedCheckpoint:
    """An unquantized model's tensors, under the names that transformers' models have for them.

    Nothing but headers is read before a tensor is asked for, and then its file must be there.

    Parameters
    ----------
    files
        The files that hold it.
    folder
        Their settings, if they were read already.

    Raises
    ------
    CheckpointError
        If it is no unquantized model of a known family, or a tensor is missing or of another type
        or shape.
    """

    def __init__(self, files: SourceFiles, folder: CheckpointFolder | None = None) -> None:
        folder = folder or CheckpointFolder.open(files.settings)
        _refuse_quantized(files.name, folder.config.get("quantization_config"))
        self.files = files
        self.config: Mapping[str, Any] = folder.config
        self.architecture = architecture_of(folder.config, folder.config_path)
        stored = [(file, name) for file in files.headers for name in files.headers[file].tensors]
        names = self.architecture.model_names(name for _, name in stored)
        self._home = dict(zip(names, stored, strict=True))
        self._check()

    def dtype(self, name: str) -> torch.dtype:
        """Return the type that a tensor that is no expert is stored in."""
        shard, stored = self._shard(name)
        return DTYPES[shard.tensors[stored].dtype]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that is no expert, in the type it is stored in."""
        return self._read(name)

    def expert(self, layer: int, expert: int) -> Iterator[tuple[str, Tensor]]:
        """Yield gate and up [2I, H] as one matrix, then down [H, I], as they are stored."""
        if self._is_stacked(layer):
            for matrix, [(name, _)] in self.architecture.expert_tensors(layer).items():
                yield matrix, self._read(name, expert)
            return
        for matrix, tensors in self.architecture.expert_tensors(layer, expert).items():
            yield matrix, self._joined([name for name, _ in tensors])

    def files_of(self, names: Iterable[str]) -> set[str]:
        """Return the names of the files that hold tensors that are no experts."""
        return {self._home[name][0] for name in names}

    def files_of_layer(self, layer: int) -> set[str]:
        """Return the names of the files that hold anything of a layer."""
        prefix = self.architecture.layer_prefix(layer)
        return {file for name, (file, _) in self._home.items() if name.startswith(prefix)}

    def files_of_experts(self, layer: int) -> set[str]:
        """Return the names of the files that hold experts of a layer."""
        return self.files_of(name for name, _ in self._experts(layer))

    def _shard(self, name: str) -> tuple[Shard, str]:
        file, stored = self._home[name]
        return self.files.headers[file], stored

    def _read(self, name: str, row: int | None = None) -> Tensor:
        shard, stored = self._shard(name)
        return shard.read(stored, row)

    def _joined(self, names: list[str]) -> Tensor:
        """Return tensors as one, row under row."""
        return torch.cat([*map(self._read, names)]) if names[1:] else self._read(names[0])

    def _shapes(self) -> Iterator[tuple[str, Shape]]:
        yield from self.architecture.non_expert_shapes()
        for layer in range(self.architecture.num_layers):
            yield from self._experts(layer)

    def _experts(self, layer: int) -> Iterator[tuple[str, Shape]]:
        """Yield name and shape of each tensor of a layer's experts."""
        every = range(self.architecture.num_experts)
        for expert in [None] if self._is_stacked(layer) else every:
            yield from chain(*self.architecture.expert_tensors(layer, expert).values())

    def _is_stacked(self, layer: int) -> bool:
        return self.architecture.experts_tensor(layer) in self._home

    def _check(self) -> None:
        for name, shape in self._shapes():
            if name not in self._home:
                raise CheckpointError(
                    f"{self.files.name}: {name} is missing: fetch the checkpoint again."
                )
            shard, stored = self._shard(name)
            entry = shard.tensors[stored]
            if entry.shape != shape or entry.dtype not in _FLOATS:
                raise CheckpointError(
                    f"{shard.path}: {name} is {entry.dtype} {entry.shape}; config.json asks for "
                    f"{shape}, unquantized ({', '.join(_FLOATS)}): fetch the checkpoint again."
                )


def _refuse_quantized(name: str, settings: object) -> None:
    if not settings:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    kind = f"quantized by {quoted(method)} already"
    if method == QUANT_METHOD:
        kind = "mixoff's own checkpoint already"
    raise CheckpointError(
        f"{name}: no unquantized Mixtral ({kind}): give the model that it was made of."
    )
