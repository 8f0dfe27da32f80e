"""A checkpoint's folder, whose settings and index are read once. Knows JSON, no format."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mixoff.errors import CheckpointError
from mixoff.safe_json import read_json

INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder, what its ``config.json`` holds, and what its index holds once it is needed."""

    path: Path
    config: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "CheckpointFolder":
        """Read a folder's settings.

        Raises
        ------
        CheckpointError
            If there is no such folder, or ``config.json`` is missing or holds no JSON object.
        """
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder.")
        return cls(path, read_json(path / "config.json"))

    @property
    def config_path(self) -> Path:
        """Where the settings lie."""
        return self.path / "config.json"

    @property
    def index_path(self) -> Path:
        """Where the index lies, if the folder has one."""
        return self.path / INDEX_NAME

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """What the index holds.

        Raises
        ------
        CheckpointError
            If it is missing or holds no JSON object.
        """
        return read_json(self.index_path)

    @property
    def weight_map(self) -> Mapping[str, Any]:
        """The name of each tensor, and what the index has for the name of its file.

        Raises
        ------
        CheckpointError
            If there is no index, or it lists no files.
        """
        weight_map = self.index.get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{self.index_path}: lists no files.")
        return weight_map
