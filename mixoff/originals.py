"""An unquantized Mixtral in any form that people store it in. Knows names and shapes of tensors.

Experts one by one (``block_sparse_moe.experts.E.w1``) or stacked (``mlp.experts.gate_up_proj``), in
one file or many, in float32, float16 or bfloat16, with a head of its own or the embeddings as head.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mixoff.checkpoint import experts_tensor, read_json
from mixoff.errors import CheckpointError
from mixoff.mixtral import Mixtral
from mixoff.quantization import Shape
from mixoff.shards import Shard
from mixoff.sources import SourceFiles

_FLOATS = ("F32", "F16", "BF16")


class Original:
    """An unquantized Mixtral's tensors, under the names that transformers' models have for them.

    Nothing but headers is read before a tensor is asked for, and then its file must be there.

    Parameters
    ----------
    files
        The files that hold it.

    Raises
    ------
    CheckpointError
        If it is no unquantized Mixtral, or a tensor is missing or of another type or shape.
    """

    def __init__(self, files: SourceFiles) -> None:
        self.files = files
        self.config: Mapping[str, Any] = _read_config(files)
        self.model = Mixtral(self.config, files.settings / "config.json")
        self._home = {
            _model_name(name): (file, name)
            for file, shard in files.headers.items()
            for name in shard.tensors
        }
        self._check()

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that is no expert, in the type it is stored in."""
        return self._read(name)

    def expert(self, layer: int, expert: int) -> dict[str, Tensor]:
        """Return gate and up [2I, H] as one matrix, and down [H, I], as they are stored."""
        prefix = f"model.layers.{layer}.mlp.experts."
        if self._is_stacked(layer):
            return {n: self._read(prefix + n, expert) for n in ("gate_up_proj", "down_proj")}
        gate, down, up = (self._read(f"{prefix}{expert}.w{number}.weight") for number in (1, 2, 3))
        return {"gate_up_proj": torch.cat([gate, up]), "down_proj": down}

    def layer_files(self, layer: int) -> set[str]:
        """Return the names of the files that hold tensors of a layer."""
        prefix = f"model.layers.{layer}."
        return {file for name, (file, _) in self._home.items() if name.startswith(prefix)}

    def trunk_files(self) -> set[str]:
        """Return the names of the files that hold what is in no layer."""
        names = (name for name, _ in self.model.trunk_shapes())
        return {self._home[name][0] for name in names if not name.startswith("model.layers.")}

    def _shard(self, name: str) -> tuple[Shard, str]:
        file, stored = self._home[name]
        return self.files.headers[file], stored

    def _read(self, name: str, row: int | None = None) -> Tensor:
        shard, stored = self._shard(name)
        return shard.read(stored, row)

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
                    f"{self.files.name}: {name} is missing: fetch the checkpoint again."
                )
            shard, stored = self._shard(name)
            entry = shard.tensors[stored]
            if entry.shape != shape or entry.dtype not in _FLOATS:
                raise CheckpointError(
                    f"{shard.path}: {name} is {entry.dtype} {entry.shape}; config.json asks for "
                    f"{shape}, unquantized ({', '.join(_FLOATS)}): fetch the checkpoint again."
                )


def _model_name(name: str) -> str:
    return name.replace(".block_sparse_moe.", ".mlp.")


def _read_config(files: SourceFiles) -> Mapping[str, Any]:
    config = read_json(files.settings / "config.json")
    if config.get("model_type") != "mixtral" or config.get("quantization_config"):
        kind = config.get("quantization_config") or config.get("model_type")
        raise CheckpointError(f"{files.name}: no unquantized Mixtral ({kind}).")
    return config
