"""Models for the comparisons, made once into a folder: original, mixoff's, and llama.cpp's.

Knows how each form is made; `peers.weights` has the weights.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from environments import python_of
from peers.rounds import HERE, nbytes_of
from peers.weights import Shape, link_original, write_original
from torch import Tensor

from mixoff import Scheme, quantize_checkpoint
from mixoff.quantization import HQQ, Parts

_quantized: dict[tuple[HQQ, int, torch.Size], Parts] = {}


@dataclass(frozen=True)
class Once(HQQ):
    """HQQ that quantizes equal matrices once; the checkpoint's settings say HQQ.

    A layer of Mixtral's width takes a minute or more, and these models repeat their layers.
    """

    def quantize(self, weight: Tensor) -> Parts:
        """Return the parts of the matrix, or of an equal one that was quantized before."""
        content = weight.contiguous().view(torch.uint8).numpy().data
        key = (self, zlib.crc32(content), weight.shape)
        if key not in _quantized:
            _quantized[key] = super().quantize(weight)
        return _quantized[key]


def four_and_two() -> Scheme:
    """Return the scheme of attention in 4 bits and experts in 2."""
    return Scheme(HQQ(4, 64), Once(2, 16, 8))


class Models:
    """A folder of models.

    Parameters
    ----------
    folder
        The folder in which they are made, and kept for the next run.
    name
        The prefix of this run's models.
    """

    def __init__(self, folder: Path, name: str, shape: Shape) -> None:
        self.folder, self.name, self.shape = folder, name, shape
        folder.mkdir(parents=True, exist_ok=True)

    def original(self, layers: int | None = None) -> Path:
        """Return a checkpoint in transformers' form; fewer layers are links to the whole one."""
        whole = f"{self.name}-original"
        if layers is None or layers == self.shape.layers:
            return self._make(whole, lambda path: write_original(path, self.shape))
        shape = replace(self.shape, layers=layers)
        source = self.original()
        return self._make(f"{whole}-{layers}", lambda path: link_original(path, source, shape))

    def mixoff(self, kind: str, scheme: Scheme, layers: int | None = None) -> Path:
        """Return mixoff's checkpoint of an original."""
        name = f"{self.name}-mixoff-{kind}-{layers or self.shape.layers}"

        def make(path: Path) -> None:
            quantize_checkpoint(self.original(layers), path, scheme, progress=False)

        return self._make(name, make)

    def gguf(self, kind: str, layers: int | None = None) -> Path:
        """Return llama.cpp's file of a quantization type."""
        shape = replace(self.shape, layers=layers or self.shape.layers)

        def make(path: Path) -> None:
            settings = {"path": str(path), "shape": asdict(shape), "kind": kind}
            script = str(HERE / "gguf_files.py")
            words = [str(python_of("llama")), script, json.dumps(settings)]
            subprocess.run(words, check=True)

        return self._make(f"{self.name}-{kind}-{shape.layers}.gguf", make)

    def airllm(self) -> Path:
        """Return the folder that airllm makes from an original, of links and copies."""

        def make(path: Path) -> None:
            settings = {"path": str(self.original()), "shards": str(path), "only_split": True}
            script = str(HERE / "airllm_decode.py")
            words = [str(python_of("airllm")), script, json.dumps(settings)]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

        return self._make(f"{self.name}-airllm", make)

    def remove(self) -> None:
        """Remove all models of this name."""
        for path in self.folder.glob(f"{self.name}-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remove_original(self) -> None:
        """Remove the original, once all other models were made from it."""
        for path in self.folder.glob(f"{self.name}-original*"):
            shutil.rmtree(path)

    def _make(self, name: str, make: Callable[[Path], None]) -> Path:
        path = self.folder / name
        if not path.exists():
            began = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="partial-", dir=self.folder) as partial:
                make(Path(partial) / name)
                (Path(partial) / name).rename(path)
            seconds = time.perf_counter() - began
            print(f"made {name}: {nbytes_of(path) / 1e9:.2f} GB in {seconds:.0f} s", flush=True)
        return path


def refuse_without_room(folder: Path, needed: float) -> None:
    """End the script if a folder's disk has too little room for this many bytes of models."""
    folder.mkdir(parents=True, exist_ok=True)
    needed -= nbytes_of(folder)  # models that an earlier run made
    if needed > (free := shutil.disk_usage(folder).free):
        sys.exit(f"needs {needed / 1e9:.0f} GB in {folder}; {free / 1e9:.0f} are free")
