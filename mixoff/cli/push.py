"""The command that uploads. Knows its arguments; the upload is elsewhere."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mixoff.cli.prepare import read_text
from mixoff.cli.printable import one_line
from mixoff.cli.terminal import progress
from mixoff.errors import ConfigError


def push(
    folder: Annotated[Path, typer.Argument(help="A checkpoint that mixoff quantize made.")],
    repository: Annotated[str, typer.Argument(help="Where to: owner/repository.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository for its owner only.")
    ] = False,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="What mixoff eval --json printed: a file.", show_default=False),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help="The original's repository, which the card names.", show_default=False),
    ] = None,
) -> None:
    """Upload a quantized checkpoint to the Hugging Face hub, with a card that describes it."""
    measured = None if evaluation is None else _read_evaluation(evaluation)
    with progress("importing torch"):
        from huggingface_hub.utils import disable_progress_bars

        from mixoff.hub import push_to_hub
    if not sys.stderr.isatty():
        disable_progress_bars()  # the client's bars of an upload would go into pipes, too
    address = push_to_hub(
        folder, repository, private=private, base_model=base_model, evaluation=measured
    )
    typer.echo(one_line(address))


def _read_evaluation(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: no JSON ({error}): give what mixoff eval --json printed."
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: no JSON object: give what mixoff eval --json printed.")
    return found
