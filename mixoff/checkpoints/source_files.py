"""Where the files of a checkpoint that is to be converted come from. Knows files; no tensors."""

import hashlib
import json
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Protocol

from mixoff.checkpoints.folder import INDEX_NAME
from mixoff.checkpoints.safetensors_read import Shard, files_beside, read_shards
from mixoff.errors import CheckpointError
from mixoff.safe_json import read_json

COMPANIONS = (  # what a checkpoint has of its model besides weights and config.json
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
_WHOLE = "model.safetensors"  # the file's name where there is but one
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class SourceFiles(Protocol):
    """Files that come one by one, and may go again when they aren't needed any more."""

    @property
    def name(self) -> str:
        """What a person calls the source: a folder, or a repository and its revision."""

    @property
    def identity(self) -> str:
        """A text that is another one when the contents are: a resumed conversion compares it."""

    @property
    def settings(self) -> Path:
        """A folder with ``config.json``, the index if there is one, and the tokenizer's files."""

    @property
    def headers(self) -> Mapping[str, Shard]:
        """The header of each file of weights, by its name; its path is where the file will lie."""

    @property
    def nbytes(self) -> Mapping[str, int]:
        """The size of each file of weights."""

    @property
    def absent(self) -> Set[str]:
        """The files that `fetch` would have to bring here first, and make room for."""

    @property
    def frees(self) -> bool:
        """Whether `release` removes a file that `fetch` brought."""

    def fetch(self, name: str) -> None:
        """See that a file lies, whole, at its header's path.

        Raises
        ------
        CheckpointError
            If it can't be had, or isn't what it should be.
        """

    def release(self, name: str) -> None:
        """Tell that a file will not be needed again."""

    def close(self) -> None:
        """Tell that nothing at all will be needed again."""


class FolderFiles:
    """The files of a folder here, which all are there and stay.

    Parameters
    ----------
    path
        The folder.

    Raises
    ------
    CheckpointError
        If there is no such folder, or a file of its index is missing or damaged.
    """

    absent: Set[str] = frozenset()
    frees = False

    def __init__(self, path: str | Path) -> None:
        self.settings = Path(path)
        self.name = str(path)
        if not self.settings.is_dir():
            raise CheckpointError(f"{path}: no such folder.")
        names = self._file_names()
        shards = read_shards(self.settings / name for name in names)
        self.headers = dict(zip(names, shards, strict=True))
        told = {name: _stat(shard.path) for name, shard in self.headers.items()}
        self.nbytes = {name: stat.st_size for name, stat in told.items()}
        self._changed = {name: stat.st_mtime_ns for name, stat in told.items()}

    @property
    def identity(self) -> str:
        """A hash of settings, and of names, sizes, times and headers of the files of weights."""
        settings = read_json(self.settings / "config.json")
        found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, shard in self.headers.items():
            facts = (name, self.nbytes[name], self._changed[name], shard.header_crc32)
            found.update(repr(facts).encode())
        return found.hexdigest()

    def fetch(self, name: str) -> None:
        """Do nothing: the file is here."""

    def release(self, name: str) -> None:
        """Do nothing: the file isn't ours to remove."""

    def close(self) -> None:
        """Do nothing: the folder isn't ours to remove."""

    def _file_names(self) -> list[str]:
        index = self.settings / INDEX_NAME
        if index.exists() or index.is_symlink():
            return indexed_files(index)
        if not (self.settings / _WHOLE).exists() and (pickles := self._pickles()):
            raise CheckpointError(
                f"{self.name}: its weights are pickles ({pickles[0]}), which may run code as they "
                "are read, so mixoff reads none: fetch the repository's safetensors files, or "
                "save the model as safetensors with transformers' save_pretrained."
            )
        return [_WHOLE]

    def _pickles(self) -> list[str]:
        return sorted(p.name for p in self.settings.iterdir() if p.suffix in _PICKLES)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}).") from error


def indexed_files(index: Path) -> list[str]:
    """Return the names of the files that an index lists.

    Raises
    ------
    CheckpointError
        If it lists none, or others than safetensors files of its own folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: lists no files.")
    return files_beside(index, weight_map.values())
