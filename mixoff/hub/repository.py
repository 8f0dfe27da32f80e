"""A repository's files at one commit. Knows names, revisions, sizes and hashes; no contents."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi

from mixoff.errors import CheckpointError

# Weights, settings and the tokenizer's files; never pickles or code.
_FETCHED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHOWN = 8  # digits of a commit


@dataclass(frozen=True)
class HubName:
    """A repository's name and, after an @, a branch, tag or commit."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, name: str) -> "HubName":
        """Return the parts of ``owner/repository`` or ``owner/repository@revision``."""
        repository, _, revision = name.partition("@")
        return cls(repository, revision or None)

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


@dataclass(frozen=True)
class RemoteFile:
    """A file at a commit, and its hash: SHA-256 for a large file (LFS), else git's SHA-1."""

    name: str
    nbytes: int
    digest: str


@dataclass(frozen=True)
class Repository:
    """A repository at one commit, with the files of kinds that mixoff fetches."""

    name: str
    commit: str
    files: Mapping[str, RemoteFile]
    has_pickles: bool

    @property
    def title(self) -> str:
        """The name and the commit's first digits, as shown to a person."""
        return short_title(self.name, self.commit)

    @property
    def settings(self) -> list[RemoteFile]:
        """The files without weights."""
        return [file for file in self.files.values() if not is_weights(file.name)]

    def require_safetensors(self) -> None:
        """Refuse a repository without safetensors files.

        Raises
        ------
        CheckpointError
            If there are none.
        """
        if any(is_weights(name) for name in self.files):
            return
        if self.has_pickles:
            raise CheckpointError(
                f"{self.title}: its weights are pickles (.bin, .pt), which could run code, so "
                "mixoff doesn't read them: choose a repository with safetensors files."
            )
        raise CheckpointError(f"{self.title}: holds no weights (no safetensors files).")


def is_weights(name: str) -> bool:
    """Return whether a file of this name holds weights."""
    return name.endswith(".safetensors")


def short_title(repository: str, commit: str) -> str:
    """Return a repository's name and its commit's first digits: ``owner/repository@1234abcd``."""
    return f"{repository}@{commit[:_SHOWN]}"


def is_on_hub(name_or_path: str | Path) -> bool:
    """Return whether this isn't a folder here, but may be a repository's name on the hub."""
    name = str(name_or_path)
    if isinstance(name_or_path, Path) or Path(name).is_dir():
        return False
    return name.partition("@")[0].count("/") == 1 and name[0] not in "/.~"


def list_repository(name: HubName) -> Repository:
    """Return the hub's current commit for a name, with its files; errors are the client's own."""
    info = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True)
    siblings = info.siblings or []
    files = {}
    for sibling in siblings:
        digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if is_fetched(sibling.rfilename) and digest and sibling.size is not None:
            files[sibling.rfilename] = RemoteFile(sibling.rfilename, sibling.size, digest)
    pickles = any(sibling.rfilename.endswith(_PICKLES) for sibling in siblings)
    return Repository(name.repository, str(info.sha), files, pickles)


def is_fetched(name: str) -> bool:
    """Return whether mixoff reads files of this name: a known kind, at the repository's root."""
    if "/" in name or "\\" in name or name.startswith("."):
        return False
    return any(fnmatch(name, pattern) for pattern in _FETCHED)
