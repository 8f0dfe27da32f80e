"""The commands. Knows their arguments and output; the work is done in other rooms.

torch and transformers are imported inside commands only, so that help and completion are quick.
"""

import json
import os
import sys
import warnings
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from mixoff._version import __version__
from mixoff.cli.conversion import quantize
from mixoff.cli.evaluation import evaluate
from mixoff.cli.options import (
    MIXTRAL,
    CheckpointName,
    Context,
    Device,
    DeviceMemory,
    DeviceOption,
    HostMemory,
    Json,
    MaxNewTokens,
    Miss,
    MissOption,
    ModelName,
    OffloadPerLayer,
    PolicyName,
    Prefetch,
    Prompt,
    QuantizedModelName,
    Seed,
    System,
    Temperature,
    TopP,
)
from mixoff.cli.planning import plan
from mixoff.cli.prepare import conversation, named, named_device, offload_settings
from mixoff.cli.printable import one_line
from mixoff.cli.push import push
from mixoff.cli.recordings import record, replay
from mixoff.cli.report import checkpoint_facts, checkpoint_table, memory_table, plan_facts
from mixoff.cli.terminal import Session, answer_json, answer_text, progress, prompts
from mixoff.errors import MixoffError
from mixoff.known_models import MIXTRAL_OFFLOADING

_INTERRUPTED = 130  # the exit status of shells for a program that Ctrl-C ended


class _OneLineErrors(TyperGroup):
    """Commands whose errors are one line on stderr."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here a closed pipe can still be handled
            return result
        except MixoffError as error:
            _print_error(one_line(error))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            _print_error("interrupted")
            raise typer.Exit(_INTERRUPTED) from None


def _print_error(line: str) -> None:
    typer.echo(f"mixoff: {line}", err=True)


def _show_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"mixoff {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="mixoff",
    cls=_OneLineErrors,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run mixture-of-experts models larger than fast memory, and see the cache at work."""


@app.command()
def demo(
    ctx: typer.Context,
    offload_per_layer: OffloadPerLayer = 4,
    device_memory: DeviceMemory = None,
    policy: PolicyName = "lru",
    prefetch: Prefetch = 0,
    host_memory: HostMemory = "0",
    miss: MissOption = Miss.fetch,
    device: DeviceOption = Device.auto,
    temperature: Temperature = 0.0,
    top_p: TopP = 0.9,
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
    system: System = None,
    prompt: Prompt = None,
    as_json: Json = False,
) -> None:
    """Chat with the demo model, which needs no network; through a pipe, each line is a message."""
    from mixoff.known_models import demo_path

    chat(
        ctx,
        quantized_model_name=str(demo_path()),
        offload_per_layer=offload_per_layer,
        device_memory=device_memory,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        policy=policy,
        prefetch=prefetch,
        host_memory=host_memory,
        miss=miss,
        device=device,
        seed=seed,
        system=system,
        prompt=prompt,
        as_json=as_json,
    )


@app.command()
def chat(
    ctx: typer.Context,
    model_name: ModelName = MIXTRAL,
    quantized_model_name: QuantizedModelName = MIXTRAL_OFFLOADING,
    offload_per_layer: OffloadPerLayer = 5,
    device_memory: DeviceMemory = None,
    temperature: Temperature = 0.9,
    top_p: TopP = 0.9,
    max_new_tokens: MaxNewTokens = 512,
    policy: PolicyName = "lru",
    prefetch: Prefetch = 0,
    host_memory: HostMemory = "0",
    miss: MissOption = Miss.fetch,
    device: DeviceOption = Device.auto,
    seed: Seed = None,
    system: System = None,
    prompt: Prompt = None,
    as_json: Json = False,
) -> None:
    """Chat with a quantized checkpoint; through a pipe, each line is a message.

    The default is mixtral-offloading's published checkpoint, with Mixtral-8x7B-Instruct's
    tokenizer.
    """
    offload = offload_settings(
        ctx,
        offload_per_layer,
        device_memory=device_memory,
        host_memory=host_memory,
        policy=policy,
        prefetch=prefetch,
        miss=miss,
    )
    checkpoint = named(quantized_model_name)
    chat = conversation(
        checkpoint,
        offload,
        device,
        model_name,
        system=system,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    if prompt is None and not as_json and sys.stdin.isatty() and sys.stdout.isatty():
        Session(chat, checkpoint.title).run()
        return
    answer = answer_json if as_json else answer_text
    for message in prompts(sys.stdin) if prompt is None else [prompt]:
        answer(chat, message)


@app.command()
def info(
    ctx: typer.Context,
    checkpoint: CheckpointName,
    offload_per_layer: OffloadPerLayer = 4,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = "0",
    device: DeviceOption = Device.auto,
    context: Context = None,
    as_json: Json = False,
) -> None:
    """Show what a checkpoint holds, and how many bytes of each memory a run takes."""
    offload = offload_settings(
        ctx, offload_per_layer, device_memory=device_memory, host_memory=host_memory
    )
    with progress("importing torch"):
        from mixoff.checkpoints.formats import open_checkpoint
        from mixoff.planning.plan import plan_memory
    resolved = named(checkpoint)
    opened = open_checkpoint(resolved.folder)
    planned = plan_memory(
        opened, offload, device=named_device(device, planned=True), context=context
    )
    facts = checkpoint_facts(opened) | asdict(resolved)
    facts["folder"] = str(resolved.folder)
    if as_json:
        typer.echo(json.dumps({"checkpoint": facts, "run": plan_facts(planned)}))
        return
    console = Console(highlight=False)
    console.print(checkpoint_table(facts))
    console.print(memory_table(planned, opened.num_experts))


app.command("eval")(evaluate)


app.command()(plan)
app.command()(quantize)
app.command()(record)
app.command()(replay)
app.command()(push)


def main() -> None:
    """Run the command line, without other libraries' warnings."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a closed stream is None; a replaced one may lack this
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    app(prog_name="mixoff")
