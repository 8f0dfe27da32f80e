"""A name on the Hugging Face hub to a folder here. Knows the hub's errors, and what to refuse."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from mixoff.checkpoint import INDEX_NAME, QUANT_METHOD
from mixoff.documents import read_json
from mixoff.errors import CheckpointError
from mixoff.released import is_released_layout

# Never pickles or code: weights, settings, and the tokenizer's own files.
_FETCHED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]


def checkpoint_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a checkpoint, fetching it from the hub unless it is a folder here.

    Raises
    ------
    CheckpointError
        If there is no such folder and no such repository, the hub can't be reached, or the
        repository holds no mixoff checkpoint.
    """
    name = str(name_or_path)
    if not is_on_hub(name_or_path):
        if (path := Path(name).expanduser()).is_dir():
            return path
        raise CheckpointError(f"{name}: no such folder.")
    require_mixoff_checkpoint(name)
    with _plain_errors(name):
        return Path(snapshot_download(name, allow_patterns=_FETCHED))


def is_on_hub(name_or_path: str | Path) -> bool:
    """Return whether this is no folder here, but may be the name of a repository on the hub."""
    name = str(name_or_path)
    if isinstance(name_or_path, Path) or Path(name).is_dir():
        return False
    return name.count("/") == 1 and name[0] not in "/.~"


def require_mixoff_checkpoint(name: str) -> None:
    """Refuse a repository that holds no checkpoint that mixoff reads, by its small files alone.

    Raises
    ------
    CheckpointError
        If it isn't one, or the hub can't be asked.
    """
    with _plain_errors(name):
        config = read_json(Path(hf_hub_download(name, "config.json")))
        settings = config.get("quantization_config")
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        if method == QUANT_METHOD or is_released_layout(_weight_map(name)):
            return
    kind = f"its quantization is {method!r}" if method else "it isn't quantized"
    raise CheckpointError(
        f"{name}: no mixoff checkpoint ({kind}), so its weights were not fetched: make one of a "
        "Mixtral in Hugging Face's form with `mixoff quantize`, or try `mixoff demo`."
    )


def _weight_map(name: str) -> object:
    try:
        return read_json(Path(hf_hub_download(name, INDEX_NAME))).get("weight_map")
    except RemoteEntryNotFoundError:  # a small model is in one file and has no index
        return None


@contextmanager
def _plain_errors(name: str) -> Iterator[None]:
    """Turn the hub's errors into one sentence each."""
    try:
        yield
        return
    except GatedRepoError:
        reason = "its owner asks for consent first: accept its terms on the hub, then set HF_TOKEN"
    except RepositoryNotFoundError:
        reason = "no folder here, and no such repository on the hub (a private one needs HF_TOKEN)"
    except HFValidationError:
        reason = "no folder here, and no name that the hub could have"
    except LocalEntryNotFoundError:
        reason = "no folder here, and the hub can't be reached: give a folder, or connect first"
    except RemoteEntryNotFoundError:
        reason = "a repository on the hub, but one without a config.json: no model"
    except OSError as error:
        reason = f"no folder here, and the hub can't be reached ({type(error).__name__})"
    raise CheckpointError(f"{name}: {reason}.")
