"""From what a person named to what a command works on. Knows names, folders and slow imports."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mixoff.cli.options import Bits, Device
from mixoff.cli.printable import one_line
from mixoff.cli.terminal import progress
from mixoff.config import OffloadConfig
from mixoff.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mixoff.cache import ExpertCache
    from mixoff.formats import AnyCheckpoint
    from mixoff.hub import HubCheckpoint
    from mixoff.quantization import Quantization


def offload_settings(
    ctx: typer.Context,
    offload_per_layer: int,
    *,
    device_memory: str | None,
    host_memory: str,
    policy: str = "lru",
    prefetch: int = 0,
) -> OffloadConfig:
    """Return the settings that a command was given; a budget replaces a default of experts outside.

    Both at once, when typed, are refused as everywhere.
    """
    source = ctx.get_parameter_source("offload_per_layer")
    typed = source is not None and source.name != "DEFAULT"
    return OffloadConfig(
        offload_per_layer=offload_per_layer if typed or device_memory is None else None,
        device_memory=device_memory,
        host_memory=host_memory,
        policy=policy,
        prefetch=prefetch,
    )


def load(
    found: "HubCheckpoint", offload: OffloadConfig, device: Device, tokenizer_name: str
) -> "tuple[PreTrainedModel, ExpertCache, PreTrainedTokenizerBase]":
    """Return a checkpoint's model, its cache and its tokenizer, or that of the model named."""
    folder = open_runnable(found, offload, device).path  # refuse before a long load
    from mixoff import build_model

    with progress(f"loading {found.title}"):
        tokenizer = load_tokenizer(folder, tokenizer_name)
        model, cache = build_model(folder, offload, device=named_device(device))
    return model, cache, tokenizer


def open_runnable(
    found: "HubCheckpoint", offload: OffloadConfig, device: Device
) -> "AnyCheckpoint":
    """Return a checkpoint of which nothing is loaded; one that can't run so is refused."""
    with progress("importing torch and transformers"):
        from transformers.utils import logging

        from mixoff import plan_memory
        from mixoff.formats import open_checkpoint
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    checkpoint, where = open_checkpoint(found.folder), named_device(device)
    plan_memory(checkpoint, offload, device=where)
    return checkpoint


def named(name: str) -> "HubCheckpoint":
    """Return a checkpoint, fetched from the hub where it is no folder here; tell which commit."""
    with progress("importing torch and transformers"):
        from mixoff.hub import is_on_hub, named_checkpoint
    shown = is_on_hub(name) and sys.stderr.isatty()
    if shown:
        typer.echo(f"looking for {one_line(name)} on the Hugging Face hub", err=True)
    found = named_checkpoint(name)
    if shown:
        typer.echo(f"using {one_line(found.title)}", err=True)
    return found


def load_tokenizer(folder: Path, name: str) -> "PreTrainedTokenizerBase":
    """Return a checkpoint's tokenizer, or that of the model named if it has none.

    Raises
    ------
    CheckpointError
        If neither can be loaded.
    """
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    source = folder if any((folder / file).is_file() for file in files) else name
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{source}: no tokenizer could be loaded ({reason}): put tokenizer.json into "
            f"{folder}, or name a model that has one with --model-name."
        ) from error


def named_device(device: Device, *, planned: bool = False) -> str:
    """Return the device's name; one that is only planned for needn't be here."""
    import torch

    here = torch.cuda.is_available()
    if device is Device.auto:
        return "cuda" if here else "cpu"
    if device is Device.cuda and not (here or planned):
        raise ConfigError("device='cuda': torch finds no GPU here, so give cpu or auto.")
    return "cuda" if device is Device.cuda else "cpu"


def read_text(path: Path) -> str:
    """Return what a text file holds."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}): give a text file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: no UTF-8: give a text file in that encoding.") from None


def stored_type(source: Path) -> str:
    """Return the type that a Hugging Face folder says its weights have."""
    from mixoff.checkpoint import read_json, stored_dtype

    return str(stored_dtype(read_json(source / "config.json"))).removeprefix("torch.")


def quantization(bits: Bits, group_size: int, scale_nbits: int, source: Path) -> "Quantization":
    """Return how weights are stored in so many bits; none of them keep a folder's type."""
    from mixoff import HQQ, Unquantized

    if bits is Bits.none:
        return Unquantized(stored_type(source))
    return HQQ(nbits=int(bits.value), group_size=group_size, scale_nbits=scale_nbits)
