"""From the name of a source to its conversion. Knows folders and the hub, no contents."""

from pathlib import Path

from mixoff.checkpoints.source_files import FolderFiles, SourceFiles
from mixoff.convert.conversion import Conversion
from mixoff.convert.partial_folder import named_errors
from mixoff.errors import ConfigError
from mixoff.hub import HubFiles, is_on_hub
from mixoff.quantization import Scheme


def quantize_checkpoint(
    source: str | Path | SourceFiles,
    target: str | Path,
    scheme: Scheme | None = None,
    *,
    progress: bool = True,
    restart: bool = False,
) -> Path:
    """Quantize a Mixtral into a new folder, and return the folder.

    One matrix is in memory at a time. The folder appears under its name when it is whole and every
    byte of it was read again. Until then its files lie beside it in ``.NAME.partial``, which stays
    when the conversion is interrupted: the same call resumes it.

    Parameters
    ----------
    source
        A folder with ``config.json`` and safetensors, experts one by one or stacked, or in the
        layout that mixtral-offloading released; the name of such a repository on the hub, whose
        files are fetched and removed one by one; or any other `SourceFiles`.
    target
        The folder to make; it must not exist yet.
    scheme
        How attention and experts are stored: by default attention in 4 bits in groups of 64,
        experts in 2 bits in groups of 16 with 8-bit scales; the released layout keeps the codes
        that it has. The rest keeps the type it has.
    progress
        Whether to show a progress bar.
    restart
        Whether to throw an unfinished conversion to this target away, instead of resuming it.

    Raises
    ------
    CheckpointError
        If the source is no Mixtral or is damaged, or the target can't be written.
    ConfigError
        If the target exists already, the scheme doesn't suit the model's shapes, or an unfinished
        conversion to this target is of another source or scheme, or is running.
    """
    files = source_files(source, target) if isinstance(source, str | Path) else source
    return Conversion(files, target, scheme).run(progress=progress, restart=restart)


def source_files(
    name: str | Path, target: str | Path, *, keep_shards: bool | None = None
) -> SourceFiles:
    """Return the files of a source by its name.

    Parameters
    ----------
    name
        A folder, or ``owner/repository`` or ``owner/repository@revision`` on the hub.
    target
        The folder that will be made of it. Files from the hub lie beside it, in ``.NAME.source``
        until each isn't needed any more, or in ``NAME.source`` if they are to be kept.
    keep_shards
        Whether files that were fetched from the hub stay; by default each is removed.

    Raises
    ------
    CheckpointError
        If there is no such folder or repository, or it can't be read.
    ConfigError
        If `keep_shards` is False for a folder, whose files are never removed.
    """
    target = Path(target)
    if is_on_hub(name):
        folder = f"{target.name}.source" if keep_shards else f".{target.name}.source"
        return HubFiles(str(name), target.parent / folder, keep=bool(keep_shards))
    path = Path(name).expanduser()
    if keep_shards is False:
        raise ConfigError(
            f"{name}: a folder's own files are never removed: leave --delete-shards out."
        )
    with named_errors(path):
        return FolderFiles(path)
