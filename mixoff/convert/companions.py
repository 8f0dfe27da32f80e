"""A checkpoint's small files: settings, index, tokenizer. Knows their contents."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mixoff.checkpoints.folder import INDEX_NAME
from mixoff.checkpoints.quantization_config import quantization_settings
from mixoff.checkpoints.source_files import COMPANIONS
from mixoff.convert.matrices import Matrices
from mixoff.convert.output_files import Unit
from mixoff.errors import CheckpointError

SMALL_FILES = frozenset({"config.json", INDEX_NAME, *COMPANIONS})


def small_files(
    matrices: Matrices, units: Iterable[Unit], header_crc32: Mapping[str, int]
) -> dict[str, bytes]:
    """Return the name and content of each file that holds no weights.

    Parameters
    ----------
    matrices
        What is converted.
    units
        The files of weights.
    header_crc32
        The CRC-32 of each one's header. The small files' sizes don't depend on it.

    Raises
    ------
    CheckpointError
        If one of the source's can't be read.
    """
    config = {**matrices.weights.config}
    config["quantization_config"] = quantization_settings(matrices.scheme)
    files = {
        INDEX_NAME: _json(_index([*units], header_crc32)),
        "config.json": _json(config),
    }
    for name in COMPANIONS:
        path = matrices.weights.files.settings / name
        try:
            if path.is_file():
                files[name] = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({error.strerror}).") from error
    return files


def _index(units: list[Unit], header_crc32: Mapping[str, int]) -> dict[str, Any]:
    # In the order of layers, for readers of the text.
    nbytes = sum(tensor.nbytes for unit in units for tensor in unit.tensors.values())
    return {
        "metadata": {
            "total_size": nbytes,
            "header_crc32": {unit.name: f"{header_crc32[unit.name]:08x}" for unit in units},
        },
        "weight_map": {name: unit.name for unit in units for name in unit.tensors},
    }


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
