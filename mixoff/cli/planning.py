"""The command that plans a run before any download. Knows what is asked and what is shown."""

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
    AskedScheme,
    AttentionBits,
    AttentionGroupSize,
    ExpertsBits,
    ExpertsGroupSize,
    GroupSize,
    LayerExperts,
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
    """Tell what a run would put where, and whether it fits, before any weights are fetched.

    An unquantized model is planned as `mixoff quantize` would store it. The device needn't be here.
    """
    offload = offload_settings(
        ctx, offload_per_layer, device_memory=device_memory, host_memory=host_memory
    )
    asked = AskedScheme(
        attention, experts, layer_experts, group_size, attention_group_size, experts_group_size
    )
    with progress("importing torch"):
        from mixoff.planning.plan import plan_memory
        from mixoff.planning.preview import preview_checkpoint
    prospect = preview_checkpoint(name)
    outline = prospect.outline(asked.scheme(prospect.config) if asked else None)
    planned = plan_memory(
        outline, offload, device=named_device(device, planned=True), context=context
    )
    facts = checkpoint_facts(outline) | _facts(prospect)
    if as_json:
        typer.echo(json.dumps({"checkpoint": facts, "run": plan_facts(planned)}))
        return
    console = Console(highlight=False)
    console.print(checkpoint_table(facts))
    console.print(memory_table(planned, outline.num_experts))
    typer.echo(_verdict(prospect, facts["non_expert_nbytes"] + facts["experts_nbytes"]))


def _facts(prospect: "CheckpointPreview") -> dict[str, Any]:
    return {
        "folder": prospect.title,
        "format": "unquantized" if prospect.stored is None else "quantized",
        "fetched_nbytes": prospect.fetched_nbytes,
    }


def _verdict(prospect: "CheckpointPreview", nbytes: int) -> str:
    there = f" of {format_nbytes(prospect.fetched_nbytes)}" if prospect.fetched_nbytes else ""
    if prospect.stored is None:
        return f"It fits, once `mixoff quantize` has made {format_nbytes(nbytes)}{there}."
    return f"It fits{f'; its weights are files{there}' if there else ''}."
