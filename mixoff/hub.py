"""A name on the Hugging Face hub to a folder here. Knows the hub's errors; nothing of what it fetches."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from mixoff.errors import CheckpointError

# Never pickles or code: weights, settings, and the tokenizer's own files.
_FETCHED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]


def checkpoint_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a checkpoint, fetching it from the hub unless it is a folder here.

    Raises
    ------
    CheckpointError
        If there is no such folder and no such repository, or the hub can't be reached.
    """
    path = Path(name_or_path).expanduser()
    name = str(name_or_path)
    if path.is_dir():
        return path
    if isinstance(name_or_path, Path) or path.is_absolute() or name.count("/") != 1 or name[0] in ".~":
        raise CheckpointError(f"{name}: no such folder.")
    try:
        return Path(snapshot_download(name, allow_patterns=_FETCHED))
    except GatedRepoError:
        reason = "its owner asks for consent first: accept its terms on the hub, then set HF_TOKEN"
    except RepositoryNotFoundError:
        reason = "no folder here, and no such repository on the hub (a private one needs HF_TOKEN)"
    except HFValidationError:
        reason = "no folder here, and no name that the hub could have"
    except (LocalEntryNotFoundError, OSError) as error:
        reason = f"no folder here, and the hub can't be reached ({type(error).__name__})"
    raise CheckpointError(f"{name}: {reason}.")
