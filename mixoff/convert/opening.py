"""From what a person names to a conversion. Knows kinds of sources; nothing of what is in them."""

from pathlib import Path

from mixoff.convert.conversion import Conversion
from mixoff.convert.folder import named_errors
from mixoff.errors import CheckpointError, ConfigError
from mixoff.quantization import Scheme
from mixoff.sources import FolderFiles, SourceFiles


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
    byte of it was read again. What is done until then lies beside it in ``.NAME.partial``, which
    stays when the conversion is interrupted: the same call goes on with it.

    Parameters
    ----------
    source
        A folder with ``config.json`` and safetensors, experts one by one or stacked, or in the
        layout that mixtral-offloading released; or files that come one by one.
    target
        The folder to make; it must not exist yet.
    scheme
        How attention and experts are stored: by default attention in 4 bits in groups of 64,
        experts in 2 bits in groups of 16 with 8-bit scales; the released layout keeps the codes
        that it has. The rest keeps the type it has.
    progress
        Whether to show a progress bar.
    restart
        Whether to throw an unfinished conversion to this target away, instead of going on with it.

    Raises
    ------
    CheckpointError
        If the source is no Mixtral or is damaged, or the target can't be written.
    ConfigError
        If the target exists already, the scheme doesn't suit the model's shapes, or an unfinished
        conversion to this target is another one or is under way.
    """
    files = source_files(source) if isinstance(source, str | Path) else source
    return Conversion(files, target, scheme).run(progress=progress, restart=restart)


def source_files(name: str | Path, *, keep_shards: bool | None = None) -> SourceFiles:
    """Return the files of a source by its name.

    Parameters
    ----------
    name
        A folder.
    keep_shards
        Whether files that were fetched from the hub stay once they aren't needed.

    Raises
    ------
    CheckpointError
        If there is no such folder.
    ConfigError
        If files of a folder were to be removed.
    """
    path = Path(name).expanduser()
    with named_errors(path):
        if path.is_dir():
            if keep_shards is False:
                raise ConfigError(
                    f"{name}: a folder's own files are never removed: leave --delete-shards out."
                )
            return FolderFiles(path)
    raise CheckpointError(
        f"{name}: no such folder, and converting from the hub isn't possible yet: "
        "fetch the repository into a folder first."
    )
