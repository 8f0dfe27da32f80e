"""Records with weights that identify their expert, in files that can be damaged and repaired."""

import zlib
from pathlib import Path

import torch
from torch import Tensor

from mixoff.quantization import Unquantized
from mixoff.tiers.buffers import Expert
from mixoff.tiers.record import RecordLayout, RecordLocation

LAYOUT = RecordLayout(Unquantized("float32"), (("weight", (3, 5)),))


def stamp(layer: int, expert: int) -> float:
    """Return the number that is every weight of one expert, and of no other expert."""
    return 100.0 * (layer + 1) + expert


def record(layer: int, expert: int) -> bytes:
    raw = torch.zeros(LAYOUT.stride, dtype=torch.uint8)
    for tensor in LAYOUT.tensors(raw).values():
        tensor.parts["weight"].fill_(stamp(layer, expert))
    return raw.numpy().tobytes()


def is_right(layer: int, expert: int, tensors: Expert) -> bool:
    weight: Tensor = tensors["weight"].parts["weight"]
    return bool((weight == stamp(layer, expert)).all())


class Files:
    """A file of stamped records for each layer, which can be damaged and repaired."""

    def __init__(self, folder: Path, layers: int, experts: int) -> None:
        self.folder, self.layers, self.experts = folder, layers, experts
        for layer in range(layers):
            self.repair(layer)

    def path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer}"

    def repair(self, layer: int) -> None:
        content = b"".join(record(layer, expert) for expert in range(self.experts))
        with self.path(layer).open("r+b" if self.path(layer).exists() else "wb") as file:
            file.write(content)

    def truncate(self, layer: int, records: int) -> None:
        """Cut a file off inside the record after so many, unless it is shorter already."""
        nbytes = records * LAYOUT.stride + LAYOUT.nbytes // 2
        with self.path(layer).open("r+b") as file:
            file.truncate(min(nbytes, self.path(layer).stat().st_size))

    def overwrite(self, layer: int, expert: int) -> None:
        with self.path(layer).open("r+b") as file:
            file.seek(expert * LAYOUT.stride)
            file.write(record(9, expert))

    def locations(self) -> list[list[RecordLocation]]:
        return [
            [
                RecordLocation(
                    self.path(layer),
                    expert * LAYOUT.stride,
                    LAYOUT.stride,
                    zlib.crc32(record(layer, expert)),
                )
                for expert in range(self.experts)
            ]
            for layer in range(self.layers)
        ]
