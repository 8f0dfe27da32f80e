"""A chat from a checkpoint's name: checkpoint, tokenizer and model, loaded in one call.

Knows what to load, and in which order; nothing of how a chat goes on.
"""

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer

from mixoff.chat.chat import Chat
from mixoff.config import OffloadConfig
from mixoff.errors import CheckpointError
from mixoff.known_models import ORIGINAL_CHECKPOINT
from mixoff.models.build import build
from mixoff.models.run import prepare
from mixoff.safe_json import file_size, truncated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_TOKENIZER = 64 << 20  # bytes of a file; those of the largest vocabularies take a third

# Module state, since a process has one memory: loading again must free the chat before.
_latest: "list[weakref.ref[Chat]]" = []


def load_chat(
    name_or_path: str | Path,
    offload: OffloadConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    tokenizer: str = ORIGINAL_CHECKPOINT,
    system: str | None = None,
    temperature: float = 0.9,
    top_p: float = 0.9,
    max_new_tokens: int = 512,
    seed: int | None = None,
) -> Chat:
    """Load a checkpoint and its tokenizer, and return a chat with it.

    A second call first closes the chat of the call before, since memory seldom holds two such
    models: so a notebook's cell may be run twice. For several chats use `mixoff.build_model`.

    Parameters
    ----------
    name_or_path, offload, device
        As for `mixoff.build_model`.
    tokenizer
        The tokenizer's folder or name on the hub, for a checkpoint that has none.
    system, temperature, top_p, max_new_tokens, seed
        As for `mixoff.Chat`.

    Raises
    ------
    CheckpointError
        If the checkpoint or the tokenizer is missing, damaged or of another format.
    ConfigError
        If a setting can't be met.
    """
    while _latest:
        if (earlier := _latest.pop()()) is not None:
            earlier.close()
    run = prepare(name_or_path, offload, device=device)
    loaded = load_tokenizer(run.checkpoint.path, tokenizer)  # refuse before a long load
    model, _ = build(run)
    chat = Chat(
        model,
        loaded,
        system=system,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    _latest.append(weakref.ref(chat))
    return chat


def load_tokenizer(folder: Path, name: str = ORIGINAL_CHECKPOINT) -> "PreTrainedTokenizerBase":
    """Return a checkpoint's tokenizer, or the named model's if the checkpoint has none.

    Raises
    ------
    CheckpointError
        If neither can be loaded.
    """
    files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    source = folder if any((folder / file).is_file() for file in files) else name
    _refuse_large_files(folder)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # tokenizers raises this very type for a file that it can't read
        reason = truncated((str(error).splitlines() or [type(error).__name__])[0])
        raise CheckpointError(
            f"{source}: no tokenizer could be loaded ({reason}): put tokenizer.json into "
            f"{folder}, or name a model that has one (--model-name)."
        ) from error


def _refuse_large_files(folder: Path) -> None:
    for path in folder.glob("*.json"):
        try:
            size = file_size(path)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({error.strerror}).") from error
        if size > _MAX_TOKENIZER:
            raise CheckpointError(
                f"{path}: {size} bytes are too many for a tokenizer's file: "
                f"mixoff reads {_MAX_TOKENIZER} at most."
            )
