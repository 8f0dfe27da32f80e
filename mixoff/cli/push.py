"""The command that uploads a checkpoint. Knows its arguments; `mixoff.hub` uploads."""

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
    repository: Annotated[str, typer.Argument(help="The target: owner/repository.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository visible to its owner only.")
    ] = False,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="A file with the output of mixoff eval --json.", show_default=False),
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
        evaluation = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not JSON ({error}): give the output of mixoff eval --json."
        ) from None
    if not isinstance(evaluation, dict):
        raise ConfigError(f"{path}: not a JSON object: give the output of mixoff eval --json.")
    return evaluation
