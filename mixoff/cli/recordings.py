"""The commands that record and replay. Knows their arguments and output; no torch."""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mixoff.cli.options import (
    MIXTRAL,
    CheckpointName,
    Device,
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
    RequiredPrompt,
    Seed,
    System,
    Temperature,
    TopP,
    complete_policies,
)
from mixoff.cli.prepare import conversation, named
from mixoff.cli.printable import one_line
from mixoff.cli.report import sweep_table, trace_facts, trace_table
from mixoff.cli.terminal import answer_text
from mixoff.config import OffloadConfig
from mixoff.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

_POLICIES = "floor,lru,lfu,fifo,belady,belady-bypass"


def record(
    checkpoint: CheckpointName,
    prompt: RequiredPrompt,
    output: Annotated[Path, typer.Option(help="The trace to write.", show_default=False)],
    model_name: ModelName = MIXTRAL,
    offload_per_layer: OffloadPerLayer = 4,
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
) -> None:
    """Answer a prompt, and record the expert cache's events meanwhile."""
    if not output.parent.is_dir():
        raise ConfigError(f"output={output}: there is no folder {output.parent}: make it first.")
    offload = OffloadConfig(
        offload_per_layer=offload_per_layer,
        policy=policy,
        prefetch=prefetch,
        host_memory=host_memory,
        miss=miss.value,
    )
    chat = conversation(
        named(checkpoint),
        offload,
        device,
        model_name,
        system=system,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    assert chat.cache is not None
    with chat.cache.record() as trace:
        trace.provenance.update(
            model=checkpoint,
            prompt_sha256=hashlib.sha256(prompt.encode()).hexdigest(),
            teacher_forced=False,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        answer_text(chat, prompt)
    trace.save(output)
    typer.echo(f"{one_line(output)}: {trace!r}, {output.stat().st_size:,} B")


def replay(
    trace: Annotated[
        Path, typer.Argument(metavar="FILE", help="A file of mixoff record or trace.save.")
    ],
    policies: Annotated[
        str,
        typer.Option(
            help="Policies, separated by commas; floor is slots / experts.",
            autocompletion=complete_policies,
        ),
    ] = _POLICIES,
    slots: Annotated[
        str | None,
        typer.Option(help="Slots per layer, such as 1-8 or 2,4.", show_default="1 to all experts"),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(help="Write a row for each policy, number of slots and layer to this file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Replay a recording: show the hit rates and bytes of other caches."""
    from mixoff.simulate.replay import sweep
    from mixoff.trace import Trace

    recorded = Trace.load(trace)
    table = sweep(recorded, _words(policies), None if slots is None else _numbers(slots))
    facts = trace_facts(recorded)
    if csv is not None:
        _write_csv(csv, table)
    if as_json:
        # Through pandas, which writes unknown values (NaN) as null.
        rows = json.loads(table.to_json(orient="records", double_precision=15))
        typer.echo(json.dumps({"recorded": facts, "sweep": rows}))
        return
    console = Console(highlight=False)
    console.print(trace_table(facts))
    console.print(sweep_table(table))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    """Return the numbers in a text such as "1-4,8"."""
    numbers: list[int] = []
    for word in _words(text):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", word)
        if match is None:
            raise ConfigError(f"slots={text!r}: give numbers and ranges, such as 1-4,8.")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return numbers


def _write_csv(path: Path, table: "pd.DataFrame") -> None:
    try:
        table.to_csv(path, index=False)
    except OSError as error:
        raise ConfigError(f"csv={path}: can't be written ({error.strerror or error}).") from error
