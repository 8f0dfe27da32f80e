"""An unquantized Mixtral in any form that people store it in. Knows names and shapes of tensors.

Experts one by one (``block_sparse_moe.experts.E.w1``) or stacked (``mlp.experts.gate_up_proj``), in
one file or many, in float32, float16 or bfloat16, with a head of its own or the embeddings as head.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mixoff.checkpoints.mixoff_format import experts_tensor
from mixoff.checkpoints.quantization_config import QUANT_METHOD
from mixoff.checkpoints.safetensors_read import DTYPES, Shard
from mixoff.checkpoints.source_files import SourceFiles
from mixoff.errors import CheckpointError
from mixoff.families.mixtral import Mixtral
from mixoff.quantization import Shape
from mixoff.safe_json import quoted, read_json

_FLOATS = ("F32", "F16", "BF16")


class UnquantizedCheckpoint:
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
        stored = [(file, name) for file in files.headers for name in files.headers[file].tensors]
        headless = not any(name.startswith("model.") for _, name in stored)
        self._home = {_model_name(name, headless): (file, name) for file, name in stored}
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
        prefix = f"model.layers.{layer}.mlp.experts."
        if self._is_stacked(layer):
            yield "gate_up_proj", self._read(prefix + "gate_up_proj", expert)
            yield "down_proj", self._read(prefix + "down_proj", expert)
            return
        one = f"{prefix}{expert}."
        yield (
            "gate_up_proj",
            torch.cat([self._read(one + "w1.weight"), self._read(one + "w3.weight")]),
        )
        yield "down_proj", self._read(one + "w2.weight")

    def files_of(self, names: Iterable[str]) -> set[str]:
        """Return the names of the files that hold tensors that are no experts."""
        return {self._home[name][0] for name in names}

    def files_of_layer(self, layer: int) -> set[str]:
        """Return the names of the files that hold tensors of a layer, its experts among them."""
        prefix = f"model.layers.{layer}."
        return {file for name, (file, _) in self._home.items() if name.startswith(prefix)}

    def files_of_experts(self, layer: int) -> set[str]:
        """Return the names of the files that hold experts of a layer."""
        prefix = f"model.layers.{layer}.mlp.experts."
        return {file for name, (file, _) in self._home.items() if name.startswith(prefix)}

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
        for name, shape in chain(self.model.non_expert_shapes(), self._expert_shapes()):
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


def _model_name(name: str, headless: bool) -> str:
    name = name.replace(".block_sparse_moe.", ".mlp.")
    return f"model.{name}" if headless and not name.startswith("lm_head.") else name


def _read_config(files: SourceFiles) -> Mapping[str, Any]:
    config = read_json(files.settings / "config.json")
    settings = config.get("quantization_config")
    if settings:
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        mixoffs = method == QUANT_METHOD
        kind = (
            "mixoff's own checkpoint already"
            if mixoffs
            else f"quantized by {quoted(method)} already"
        )
        raise CheckpointError(
            f"{files.name}: no unquantized Mixtral ({kind}): give the model that it was made of."
        )
    Mixtral(config, files.settings / "config.json").check()
    return config
