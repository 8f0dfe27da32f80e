"""The command that converts a checkpoint. Knows its arguments and output; converts nothing."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixoff.cli.printable import one_line
from mixoff.cli.schemes import (
    AttentionBits,
    AttentionGroupSize,
    ExpertsBits,
    ExpertsGroupSize,
    GroupSize,
    LayerExperts,
    SchemeOptions,
)
from mixoff.cli.terminal import progress
from mixoff.units import format_nbytes

if TYPE_CHECKING:
    from mixoff.convert import Conversion
    from mixoff.quantization import Quantization


def quantize(
    source: Annotated[
        str,
        typer.Argument(
            help="A Mixtral in Hugging Face's or mixtral-offloading's format: folder or name."
        ),
    ],
    target: Annotated[Path, typer.Argument(help="The folder to make; it must not exist yet.")],
    attention: AttentionBits = None,
    experts: ExpertsBits = None,
    layer_experts: LayerExperts = None,
    group_size: GroupSize = None,
    attention_group_size: AttentionGroupSize = None,
    experts_group_size: ExpertsGroupSize = None,
    keep_shards: Annotated[
        bool | None,
        typer.Option(
            "--keep-shards/--delete-shards",
            help="Whether files fetched from the hub are kept after their use.",
            show_default=False,
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard an unfinished conversion to TARGET.")
    ] = False,
) -> None:
    """Quantize a Mixtral into a new checkpoint; after an interruption, the same command resumes.

    "none" keeps the weights' type. mixtral-offloading's published checkpoint keeps its codes unless
    bits or groups are given.
    """
    with progress("importing torch"):
        from mixoff.convert import Conversion, source_files
        from mixoff.safe_json import read_json
    files = source_files(source, target, keep_shards=keep_shards)
    options = SchemeOptions(
        attention, experts, layer_experts, group_size, attention_group_size, experts_group_size
    )
    scheme = options.scheme(read_json(files.settings / "config.json")) if options else None
    conversion = Conversion(files, target, scheme)
    for line in _summary(conversion, source, restart=restart):
        typer.echo(one_line(line), err=True)
    _run(conversion, restart=restart)


def _run(conversion: "Conversion", *, restart: bool) -> None:
    from time import perf_counter

    started = perf_counter()
    try:
        folder = conversion.run(progress=sys.stderr.isatty(), restart=restart)
    except KeyboardInterrupt:
        typer.echo("what is finished is kept: the same command resumes from it", err=True)
        raise
    seconds = perf_counter() - started
    nbytes = sum(file.stat().st_size for file in folder.iterdir())
    typer.echo(f"{one_line(folder)}: {format_nbytes(nbytes)} in {seconds:.1f} s")


def _summary(conversion: "Conversion", source: str, *, restart: bool) -> list[str]:
    """Return the lines that are printed before a conversion begins."""
    scheme, done = conversion.scheme, 0 if restart else conversion.done_layers
    bits = 8 * conversion.nbytes / conversion.num_weights
    lines = [
        f"source: {source}, {conversion.num_layers} layers, {conversion.num_weights:,} weights",
        f"attention: {_settings(scheme.attention)}; experts: {_settings(scheme.experts)}",
        f"target: {conversion.target}, {format_nbytes(conversion.nbytes)}, "
        f"{bits:.2f} bits a weight in all; {format_nbytes(conversion.free_nbytes)} are free there",
        f"memory: about {format_nbytes(conversion.memory_nbytes)} at most",
    ]
    if scheme.layer_experts:
        methods = sorted(scheme.layer_experts.items())
        lines[2:2] = [f"experts of layer {layer}: {_settings(m)}" for layer, m in methods]
    if done:
        lines.append(f"resumes: {done} of {conversion.num_layers} layers are done")
    return lines


def _settings(quantization: "Quantization") -> str:
    settings = {k: v for k, v in quantization.to_dict().items() if k != "method"}
    options = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"{quantization.method} ({options})"
