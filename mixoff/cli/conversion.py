"""The command that converts a checkpoint. Knows what a person types and is told about it."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixoff.cli.options import Bits
from mixoff.cli.printable import one_line
from mixoff.cli.terminal import progress
from mixoff.config import format_nbytes
from mixoff.errors import ConfigError

if TYPE_CHECKING:
    from mixoff.convert import Conversion
    from mixoff.quantization import Quantization, Scheme
    from mixoff.sources import SourceFiles

_GROUPS = "Weights that share a scale"


def quantize(
    source: Annotated[
        str,
        typer.Argument(help="A Mixtral in Hugging Face's form, or as released: folder or name."),
    ],
    target: Annotated[Path, typer.Argument(help="The folder to make; it must not exist yet.")],
    attention: Annotated[
        Bits | None, typer.Option(help="Bits of attention weights.", show_default="4")
    ] = None,
    experts: Annotated[
        Bits | None, typer.Option(help="Bits of experts' weights.", show_default="2")
    ] = None,
    layer_experts: Annotated[
        str | None,
        typer.Option(
            help="Bits of experts' weights of single layers, such as 0:4,31:none.",
            show_default=False,
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"{_GROUPS}, of attention and experts both.",
            show_default="64; experts 16 at 2 bits",
        ),
    ] = None,
    attention_group_size: Annotated[
        int | None, typer.Option(min=1, help=f"{_GROUPS}, of attention.", show_default="64")
    ] = None,
    experts_group_size: Annotated[
        int | None,
        typer.Option(min=1, help=f"{_GROUPS}, of experts.", show_default="16 at 2 bits, else 64"),
    ] = None,
    keep_shards: Annotated[
        bool | None,
        typer.Option(
            "--keep-shards/--delete-shards",
            help="Whether files fetched from the hub stay when they aren't needed any more.",
            show_default=False,
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw an unfinished conversion to TARGET away.")
    ] = False,
) -> None:
    """Quantize a Mixtral into a new checkpoint; the same command goes on where one was interrupted.

    "none" keeps the type that the weights have. What mixtral-offloading released keeps its codes
    unless bits or groups are asked for.
    """
    with progress("importing torch"):
        from mixoff.convert import Conversion, source_files
    files = source_files(source, target, keep_shards=keep_shards)
    asked = (attention, experts, layer_experts, group_size, attention_group_size)
    scheme = None
    if any(option is not None for option in (*asked, experts_group_size)):
        scheme = _scheme(
            files,
            attention or Bits.four,
            experts or Bits.two,
            layers=_layers(layer_experts),
            attention_group_size=attention_group_size or group_size,
            experts_group_size=experts_group_size or group_size,
        )
    conversion = Conversion(files, target, scheme)
    for line in _beginning(conversion, source, restart=restart):
        typer.echo(one_line(line), err=True)
    _run(conversion, restart=restart)


def _run(conversion: "Conversion", *, restart: bool) -> None:
    from time import perf_counter

    started = perf_counter()
    try:
        folder = conversion.run(progress=sys.stderr.isatty(), restart=restart)
    except KeyboardInterrupt:
        typer.echo("what is finished is kept: the same command goes on with it", err=True)
        raise
    seconds = perf_counter() - started
    nbytes = sum(file.stat().st_size for file in folder.iterdir())
    typer.echo(f"{one_line(folder)}: {format_nbytes(nbytes)} in {seconds:.1f} s")


def _beginning(conversion: "Conversion", source: str, *, restart: bool) -> list[str]:
    """Return what is told before a conversion begins."""
    scheme, done = conversion.scheme, 0 if restart else conversion.done_layers
    bits = 8 * conversion.nbytes / conversion.num_weights
    lines = [
        f"source: {source}, {conversion.num_layers} layers, {conversion.num_weights:,} weights",
        f"attention: {_said(scheme.attention)}; experts: {_said(scheme.experts)}",
        f"target: {conversion.target}, {format_nbytes(conversion.nbytes)}, "
        f"{bits:.2f} bits a weight in all; {format_nbytes(conversion.free_nbytes)} are free there",
        f"memory: about {format_nbytes(conversion.memory_nbytes)} at most",
    ]
    if scheme.layer_experts:
        others = sorted(scheme.layer_experts.items())
        lines[2:2] = [f"experts of layer {layer}: {_said(way)}" for layer, way in others]
    if done:
        lines.append(f"goes on: {done} of {conversion.num_layers} layers are done")
    return lines


def _said(quantization: "Quantization") -> str:
    settings = {k: v for k, v in quantization.to_dict().items() if k != "method"}
    options = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"{quantization.method} ({options})"


def _scheme(
    files: "SourceFiles",
    attention: Bits,
    experts: Bits,
    *,
    layers: dict[int, Bits],
    attention_group_size: int | None,
    experts_group_size: int | None,
) -> "Scheme":
    from mixoff import Scheme

    return Scheme(
        attention=_quantization(attention, attention_group_size or 64, 16, files),
        experts=_experts(experts, experts_group_size, files),
        layer_experts={
            layer: _experts(bits, experts_group_size, files) for layer, bits in layers.items()
        },
    )


def _experts(bits: Bits, group_size: int | None, files: "SourceFiles") -> "Quantization":
    two = bits is Bits.two
    return _quantization(bits, group_size or (16 if two else 64), 8 if two else 16, files)


def _quantization(
    bits: Bits, group_size: int, scale_nbits: int, files: "SourceFiles"
) -> "Quantization":
    from mixoff import HQQ, Unquantized

    if bits is Bits.none:
        return Unquantized(_stored_type(files))
    return HQQ(nbits=int(bits.value), group_size=group_size, scale_nbits=scale_nbits)


def _stored_type(files: "SourceFiles") -> str:
    """Return the type that a source's settings say its weights have."""
    from mixoff.documents import read_json
    from mixoff.settings import stored_dtype

    config = read_json(files.settings / "config.json")
    return str(stored_dtype(config)).removeprefix("torch.")


def _layers(text: str | None) -> dict[int, Bits]:
    """Return the bits of each layer out of what was typed, as "0:4,31:none"."""
    known, found = {bits.value: bits for bits in Bits}, dict[int, Bits]()
    for item in (text or "").split(",") if text is not None else []:
        match = re.fullmatch(r"\s*([0-9]{1,6}):([a-z0-9]+)\s*", item)
        if match is None or match[2] not in known or int(match[1]) in found:
            raise ConfigError(
                f"layer_experts={text!r}: give each layer once with its bits "
                f"({', '.join(known)}), as 0:4,31:none."
            )
        found[int(match[1])] = known[match[2]]
    return found
