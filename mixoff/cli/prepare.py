"""From a command's options to a run or a chat. Knows names, folders and slow imports."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mixoff.cli.options import Device, Miss
from mixoff.cli.printable import one_line
from mixoff.cli.terminal import progress
from mixoff.config import OffloadConfig
from mixoff.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mixoff.chat.chat import Chat
    from mixoff.hub import HubCheckpoint
    from mixoff.models.run import Run


def offload_settings(
    ctx: typer.Context,
    offload_per_layer: int,
    *,
    device_memory: str | None,
    host_memory: str,
    policy: str = "lru",
    prefetch: int = 0,
    miss: Miss = Miss.fetch,
) -> OffloadConfig:
    """Return the settings of a command; a budget replaces a default of experts outside.

    Both at once, when typed, are refused by `OffloadConfig`.
    """
    source = ctx.get_parameter_source("offload_per_layer")
    typed = source is not None and source.name != "DEFAULT"
    return OffloadConfig(
        offload_per_layer=offload_per_layer if typed or device_memory is None else None,
        device_memory=device_memory,
        host_memory=host_memory,
        policy=policy,
        prefetch=prefetch,
        miss=miss.value,
    )


def prepared(checkpoint: "HubCheckpoint", offload: OffloadConfig, device: Device) -> "Run":
    """Return the run of a checkpoint of which nothing is loaded; one that can't be is refused."""
    with progress("importing torch and transformers"):
        from transformers.utils import logging

        from mixoff.models.run import prepare
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return prepare(checkpoint.folder, offload, device=named_device(device))


def load(
    title: str, run: "Run", tokenizer_name: str
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return a run's model and its tokenizer, or that of the model named."""
    from mixoff.chat.load import load_tokenizer
    from mixoff.models.build import build

    with progress(f"loading {title}"):
        tokenizer = load_tokenizer(run.checkpoint.path, tokenizer_name)
        model, _ = build(run)
    return model, tokenizer


def conversation(
    checkpoint: "HubCheckpoint",
    offload: OffloadConfig,
    device: Device,
    tokenizer_name: str,
    *,
    system: str | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int | None,
) -> "Chat":
    """Return a chat with a checkpoint; options as `mixoff.Chat` has them."""
    run = prepared(checkpoint, offload, device)  # refuse before a long load
    model, tokenizer = load(checkpoint.title, run, tokenizer_name)
    from mixoff.chat.chat import Chat

    return Chat(
        model,
        tokenizer,
        system=system,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )


def named(name: str) -> "HubCheckpoint":
    """Return a checkpoint, fetched from the hub unless it is a folder; print which commit."""
    with progress("importing torch and transformers"):
        from mixoff.hub import is_on_hub, named_checkpoint
    shown = is_on_hub(name) and sys.stderr.isatty()
    if shown:
        typer.echo(f"looking for {one_line(name)} on the Hugging Face hub", err=True)
    checkpoint = named_checkpoint(name)
    if shown:
        typer.echo(f"using {one_line(checkpoint.title)}", err=True)
    return checkpoint


def named_device(device: Device, *, planned: bool = False) -> str:
    """Return the device's name; a machine that is only planned for may have another."""
    import torch

    has_gpu = torch.cuda.is_available()
    if device is Device.auto:
        return "cuda" if has_gpu else "cpu"
    if device is Device.cuda and not (has_gpu or planned):
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
