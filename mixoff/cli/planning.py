"""The command that plans a run before any download. Knows its arguments and output."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mixoff.cli.options import (
    Context,
    Device,
    DeviceMemory,
    DeviceOption,
    HostMemory,
    Json,
    OffloadPerLayer,
)
from mixoff.cli.prepare import named_device, offload_settings
from mixoff.cli.report import checkpoint_facts, checkpoint_table, memory_table, plan_facts
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
    from mixoff.planning.preview import CheckpointPreview


def plan(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="A Mixtral, quantized or not: a folder, or owner/repository[@revision] on the hub."
        ),
    ],
    attention: AttentionBits = None,
    experts: ExpertsBits = None,
    layer_experts: LayerExperts = None,
    group_size: GroupSize = None,
    attention_group_size: AttentionGroupSize = None,
    experts_group_size: ExpertsGroupSize = None,
    offload_per_layer: OffloadPerLayer = 4,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = "0",
    device: DeviceOption = Device.auto,
    context: Context = None,
    as_json: Json = False,
) -> None:
    """Plan a run before any weights are fetched: the bytes of each memory, and whether it fits.

    An unquantized model is planned as `mixoff quantize` would store it. The device needn't be part
    of this machine.
    """
    offload = offload_settings(
        ctx, offload_per_layer, device_memory=device_memory, host_memory=host_memory
    )
    options = SchemeOptions(
        attention, experts, layer_experts, group_size, attention_group_size, experts_group_size
    )
    with progress("importing torch"):
        from mixoff.planning.plan import plan_memory
        from mixoff.planning.preview import preview_checkpoint
    preview = preview_checkpoint(name)
    estimate = preview.outline(options.scheme(preview.config) if options else None)
    planned = plan_memory(
        estimate, offload, device=named_device(device, planned=True), context=context
    )
    facts = checkpoint_facts(estimate) | _facts(preview)
    if as_json:
        typer.echo(json.dumps({"checkpoint": facts, "run": plan_facts(planned)}))
        return
    console = Console(highlight=False)
    console.print(checkpoint_table(facts))
    console.print(memory_table(planned, estimate.num_experts))
    typer.echo(_verdict(preview, facts["non_expert_nbytes"] + facts["experts_nbytes"]))


def _facts(preview: "CheckpointPreview") -> dict[str, Any]:
    return {
        "folder": preview.title,
        "format": "unquantized" if preview.stored is None else "quantized",
        "fetched_nbytes": preview.fetched_nbytes,
    }


def _verdict(preview: "CheckpointPreview", nbytes: int) -> str:
    size = f" of {format_nbytes(preview.fetched_nbytes)}" if preview.fetched_nbytes else ""
    if preview.stored is None:
        return f"It fits, once `mixoff quantize` has made {format_nbytes(nbytes)}{size}."
    return f"It fits{f'; its weights are files{size}' if size else ''}."
