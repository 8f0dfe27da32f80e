"""The command that evaluates. Knows its options and its output; `mixoff.measure` measures."""

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixoff.cli.options import (
    MIXTRAL,
    CheckpointName,
    Device,
    DeviceMemory,
    DeviceOption,
    HostMemory,
    Json,
    ModelName,
    OffloadPerLayer,
)
from mixoff.cli.prepare import load, named, offload_settings, prepared, read_text
from mixoff.cli.printable import one_line
from mixoff.cli.report import percent
from mixoff.cli.terminal import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mixoff.checkpoints.formats import RunnableCheckpoint
    from mixoff.checkpoints.unquantized import UnquantizedCheckpoint
    from mixoff.measure.divergence import Divergence
    from mixoff.measure.perplexity import HeldOutLoss
    from mixoff.measure.reference import Reference
    from mixoff.models.run import Run

    LoadModel = Callable[[Run], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


def evaluate(
    ctx: typer.Context,
    checkpoint: CheckpointName,
    text: Annotated[Path, typer.Option(help="A text file in UTF-8.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(
            help="The unquantized model that the checkpoint was made from, a folder: tells the KL "
            "divergence, too. One of its experts is in memory at a time.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Predict the text's first tokens only.", show_default="all"),
    ] = None,
    offload_per_layer: OffloadPerLayer = 4,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = "0",
    device: DeviceOption = Device.auto,
    model_name: ModelName = MIXTRAL,
    as_json: Json = False,
) -> None:
    """Measure how well a checkpoint predicts a text that it was not trained on."""
    offload = offload_settings(
        ctx, offload_per_layer, device_memory=device_memory, host_memory=host_memory
    )
    content, resolved = read_text(text), named(checkpoint)
    run = prepared(resolved, offload, device)
    load_model = partial(load, resolved.title, tokenizer_name=model_name)
    if against is None:
        facts = _predicted(load_model, run, content, tokens)
    else:
        original = _original_of(run.checkpoint, against)
        from mixoff.chat.load import load_tokenizer

        tokenizer = load_tokenizer(run.checkpoint.path, model_name)
        facts = _compared(load_model, run, original, tokenizer, content, tokens)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(_loss_line(facts))
    if against is not None:
        typer.echo(_divergence_line(facts))


def _predicted(
    load_model: "LoadModel", run: "Run", text: str, tokens: int | None
) -> dict[str, Any]:
    """Return how well a model predicts a text, as JSON holds it."""
    model, tokenizer = load_model(run)
    from mixoff.measure.perplexity import held_out_loss

    started = perf_counter()
    loss = held_out_loss(model, tokenizer, text, tokens=tokens, progress=sys.stderr.isatty())
    return _loss_facts(loss) | {"seconds": perf_counter() - started}


def _compared(
    load_model: "LoadModel",
    run: "Run",
    original: "UnquantizedCheckpoint",
    tokenizer: Any,
    text: str,
    tokens: int | None,
) -> dict[str, Any]:
    """Return that and its divergence from the original, which is freed before it is loaded."""
    from mixoff.measure.divergence import kl_divergence
    from mixoff.measure.reference import compute_reference

    shown, started = sys.stderr.isatty(), perf_counter()
    reference = compute_reference(
        original, tokenizer, text, tokens=tokens, device=run.device, progress=shown
    )
    seconds = perf_counter() - started
    model, _ = load_model(run.planned_again())  # the reference takes some of what was free
    started = perf_counter()
    divergence = kl_divergence(model, reference, progress=shown)
    seconds += perf_counter() - started
    facts = _loss_facts(divergence.quantized) | _divergence_facts(divergence, reference)
    return facts | {"seconds": seconds}


def _original_of(checkpoint: "RunnableCheckpoint", against: Path) -> "UnquantizedCheckpoint":
    """Return the unquantized model named; one that isn't the checkpoint's is refused."""
    with progress("importing transformers"):
        from mixoff.measure.divergence import refuse_other_sizes
        from mixoff.measure.reference import open_unquantized
    original = open_unquantized(against)
    refuse_other_sizes(checkpoint.config, original, str(checkpoint.path))
    return original


def _loss_facts(loss: "HeldOutLoss") -> dict[str, Any]:
    return {"loss": loss.loss, "perplexity": loss.perplexity, "tokens": loss.tokens}


def _divergence_facts(divergence: "Divergence", reference: "Reference") -> dict[str, Any]:
    """Return what was compared, as JSON holds it: what is unknown is null, sizes are in bytes."""
    from mixoff.measure.reference import reference_nbytes

    return {
        "against": reference.original.files.name,
        "unquantized_loss": divergence.unquantized.loss,
        "unquantized_perplexity": divergence.unquantized.perplexity,
        "rise_standard_error": _known(divergence.rise_standard_error),
        "kl_mean": divergence.mean,
        "kl_standard_error": _known(divergence.standard_error),
        "kl_median": divergence.median,
        "kl_percentile_99": divergence.percentile_99,
        "top1_agreement": divergence.top1_agreement,
        "reference_nbytes": reference_nbytes(reference.original, reference.windows),
    }


def _known(error: float) -> float | None:
    return None if math.isnan(error) else error


def _loss_line(facts: dict[str, Any]) -> str:
    return (
        f"loss {facts['loss']:.4f} nats/token, perplexity {facts['perplexity']:.4f}, "
        f"tokens {facts['tokens']}, seconds {facts['seconds']:.1f}"
    )


def _divergence_line(facts: dict[str, Any]) -> str:
    error = facts["kl_standard_error"]
    return (
        f"against {one_line(facts['against'])}, loss {facts['unquantized_loss']:.4f}: "
        f"KL divergence {facts['kl_mean']:.5f} nats/token "
        f"(standard error {'unknown' if error is None else f'{error:.5f}'}, "
        f"median {facts['kl_median']:.5f}, 99th percentile {facts['kl_percentile_99']:.4f}), "
        f"same most likely token {percent(facts['top1_agreement'])}"
    )
