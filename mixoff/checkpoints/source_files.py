"""The files that a conversion reads, in a folder or fetched one by one. Knows no tensors."""

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
_WHOLE = "model.safetensors"  # the name of a checkpoint's only file
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class SourceFiles(Protocol):
    """Files that are fetched one by one, and may be removed once they aren't needed any more."""

    @property
    def name(self) -> str:
        """The source's name in messages: a folder, or a repository and its revision."""

    @property
    def identity(self) -> str:
        """A text that changes with the contents, which a resumed conversion compares."""

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
        """The files that aren't on this disk until `fetch` gets them."""

    @property
    def frees(self) -> bool:
        """Whether `release` removes a file that `fetch` got."""

    def fetch(self, name: str) -> None:
        """Make a file lie whole at its header's path.

        Raises
        ------
        CheckpointError
            If it can't be fetched, or its contents are wrong.
        """

    def release(self, name: str) -> None:
        """Allow a file to be removed, which isn't needed again."""

    def close(self) -> None:
        """Allow everything to be removed."""


class FolderFiles:
    """The files of a local folder, none of which is fetched or removed.

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
        stats = {name: _stat(shard.path) for name, shard in self.headers.items()}
        self.nbytes = {name: stat.st_size for name, stat in stats.items()}
        self._changed = {name: stat.st_mtime_ns for name, stat in stats.items()}

    @property
    def identity(self) -> str:
        """A hash of settings, and of names, sizes, times and headers of the files of weights."""
        settings = read_json(self.settings / "config.json")
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, shard in self.headers.items():
            facts = (name, self.nbytes[name], self._changed[name], shard.header_crc32)
            digest.update(repr(facts).encode())
        return digest.hexdigest()

    def fetch(self, name: str) -> None:
        """Do nothing: the file is here."""

    def release(self, name: str) -> None:
        """Do nothing: the file belongs to the user."""

    def close(self) -> None:
        """Do nothing: the folder belongs to the user."""

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
