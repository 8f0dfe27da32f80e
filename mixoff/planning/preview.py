"""A checkpoint by its metadata alone, before it is fetched or converted. Knows formats, sizes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mixoff.checkpoints.folder import INDEX_NAME, CheckpointFolder
from mixoff.checkpoints.mixtral_offloading import first_scheme, is_mixtral_offloading
from mixoff.checkpoints.quantization_config import QUANT_METHOD, scheme_from_settings
from mixoff.checkpoints.safetensors_read import Shard, read_shard
from mixoff.errors import CheckpointError, ConfigError
from mixoff.families import architecture_of
from mixoff.hub import HubMetadata, is_on_hub
from mixoff.planning.outline import CheckpointEstimate
from mixoff.quantization import Scheme
from mixoff.safe_json import quoted, read_json


@dataclass(frozen=True)
class CheckpointPreview:
    """A checkpoint of which only metadata was read.

    Parameters
    ----------
    title
        The folder, or the repository and its commit.
    path
        The folder where its settings lie.
    config
        What its ``config.json`` holds.
    stored
        How its weights are quantized, or None if they aren't.
    fetched_nbytes
        Bytes of its files of weights as they are.
    """

    title: str
    path: Path
    config: Mapping[str, Any]
    stored: Scheme | None
    fetched_nbytes: int

    def outline(self, scheme: Scheme | None = None) -> CheckpointEstimate:
        """Return what its tensors weigh, those of an unquantized one as they would be quantized.

        Parameters
        ----------
        scheme
            How to quantize it; by default as `mixoff.quantize_checkpoint` does.

        Raises
        ------
        ConfigError
            If it is quantized already, or the scheme doesn't suit the shapes.
        """
        if self.stored is not None and scheme is not None:
            raise ConfigError(
                f"{self.title}: is quantized already: leave out how it is to be quantized."
            )
        return CheckpointEstimate(self.path, self.config, self.stored or scheme or Scheme())


class _Metadata(Protocol):
    title: str

    @property
    def folder(self) -> Path: ...
    @property
    def nbytes(self) -> Mapping[str, int]: ...
    def json(self, name: str) -> dict[str, Any] | None: ...
    def header(self, name: str) -> Shard: ...


class _FolderMetadata:
    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder.")
        self.folder = folder
        self.title = str(folder)

    @property
    def nbytes(self) -> Mapping[str, int]:
        return {path.name: path.stat().st_size for path in self.folder.glob("*.safetensors")}

    def json(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        return read_json(path) if path.exists() or path.is_symlink() else None

    def header(self, name: str) -> Shard:
        return read_shard(self.folder / name)


def preview_checkpoint(name_or_path: str | Path) -> CheckpointPreview:
    """Return what a Mixtral needs, by its settings and headers; no weights are fetched or read.

    Parameters
    ----------
    name_or_path
        A folder, or ``owner/repository`` or ``owner/repository@revision`` on the hub: a checkpoint
        of mixoff's, the layout that mixtral-offloading released, or an unquantized Mixtral.

    Raises
    ------
    CheckpointError
        If there is no such folder or repository, or it holds none of these.
    """
    on_hub = is_on_hub(name_or_path)
    metadata: _Metadata = (
        HubMetadata(str(name_or_path)) if on_hub else _FolderMetadata(Path(name_or_path))
    )
    config = metadata.json("config.json")
    if config is None:
        raise CheckpointError(f"{metadata.title}: has no config.json, so it is no model.")
    architecture_of(config, metadata.folder / "config.json")  # refuses what mixoff can't read
    stored = _stored_scheme(metadata, config)
    fetched_nbytes = sum(metadata.nbytes.values())
    return CheckpointPreview(metadata.title, metadata.folder, config, stored, fetched_nbytes)


def _stored_scheme(metadata: _Metadata, config: Mapping[str, Any]) -> Scheme | None:
    """Return how the weights are quantized, or None if they aren't."""
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if isinstance(settings, dict) and method == QUANT_METHOD:
        try:
            return scheme_from_settings(settings)
        except ConfigError as error:
            raise CheckpointError(f"{metadata.folder / 'config.json'}: {error}") from None
    weight_map = (metadata.json(INDEX_NAME) or {}).get("weight_map")
    if isinstance(weight_map, dict) and is_mixtral_offloading(weight_map):
        return first_scheme(CheckpointFolder(metadata.folder, config), metadata.header)
    if settings:
        raise CheckpointError(
            f"{metadata.title}: is quantized by {quoted(method)}, which mixoff doesn't read: "
            "name the model that it was made of."
        )
    return None
