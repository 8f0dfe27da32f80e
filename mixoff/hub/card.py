"""The model card of a checkpoint on the hub. Knows a checkpoint's facts; makes none up."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixoff._version import __version__
from mixoff.checkpoints.formats import RunnableCheckpoint, open_checkpoint
from mixoff.errors import ConfigError
from mixoff.units import format_nbytes

_TAGS = ("mixoff", "mixture-of-experts", "mixtral", "quantized", "offloading")
_MEASURED = {  # keys of `mixoff eval --json`, and their labels on the card
    "loss": "loss, nats/token",
    "perplexity": "perplexity",
    "unquantized_loss": "loss of the original",
    "kl_mean": "KL divergence from the original, nats/token",
    "tokens": "tokens of the text",
}


def model_card(
    folder: str | Path,
    *,
    repository: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """Return the README.md of a checkpoint's repository.

    Parameters
    ----------
    folder
        A checkpoint that mixoff wrote.
    repository
        The checkpoint's name on the hub, for the commands that the card shows.
    base_model
        The original's repository; without it the card says that it isn't recorded.
    license
        The original's licence, as the hub abbreviates it; without it none is named.
    evaluation
        The output of ``mixoff eval --json``; missing keys appear as "not measured".

    Raises
    ------
    CheckpointError
        If the folder holds no checkpoint.
    ConfigError
        If a value of the evaluation isn't a finite number.
    """
    checkpoint = open_checkpoint(folder)
    name = repository or "FOLDER"
    return "\n".join(
        [
            *_front_matter(base_model, license),
            f"# {name.rpartition('/')[2] if repository else Path(folder).name}",
            "",
            f"{f'[{base_model}](https://huggingface.co/{base_model})' if base_model else 'A model'}"
            ", quantized by mixoff, which runs it in less fast memory than it needs: attention "
            "and experts are each quantized with settings of their own, and experts stay on disk "
            "until a cache fetches them.",
            *([] if base_model else ["", "Which model it was made of isn't recorded."]),
            "",
            *_contents(checkpoint),
            "",
            *_quality(evaluation or {}),
            "",
            *_commands(name),
            "",
            f"Made with mixoff {__version__}.",
            "",
        ]
    )


def _front_matter(base_model: str | None, license: str | None) -> list[str]:
    lines = ["---", "library_name: mixoff"]
    if license:
        lines.append(f"license: {json.dumps(license)}")  # JSON's strings are YAML's, too
    if base_model:
        lines += [f"base_model: {json.dumps(base_model)}", "base_model_relation: quantized"]
    return [*lines, "tags:", *(f"- {tag}" for tag in _TAGS), "---", ""]


def _contents(checkpoint: RunnableCheckpoint) -> list[str]:
    layouts = [layout for layer in checkpoint.expert_layouts() for layout in layer]
    weights = sum(math.prod(shape) for layout in layouts for _, shape in layout.shapes)
    expert_bits = 8 * sum(layout.nbytes for layout in layouts) / weights
    experts = sum(record.nbytes for layer in checkpoint.expert_locations() for record in layer)
    non_expert = sum(tensor.nbytes for tensor in checkpoint.non_expert.values())
    scheme = checkpoint.scheme
    single_layers = [
        f"| experts of layer {layer} | {_settings(method.to_dict())} |"
        for layer, method in sorted(scheme.layer_experts.items())
    ]
    return [
        "## What it holds",
        "",
        "| | |",
        "|---|---|",
        f"| layers, experts in each | {checkpoint.num_layers}, {checkpoint.num_experts} |",
        f"| attention | {_settings(scheme.attention.to_dict())} |",
        f"| experts | {_settings(scheme.experts.to_dict())} |",
        *single_layers,
        f"| experts, bits per weight with scales | {expert_bits:.2f} |",
        f"| one expert | {format_nbytes(max(layout.nbytes for layout in layouts))} |",
        f"| all experts | {format_nbytes(experts)} |",
        f"| the rest (not in experts) | {format_nbytes(non_expert)} |",
        f"| total | {format_nbytes(experts + non_expert)} |",
    ]


def _settings(settings: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "method")
    return f"{settings['method']}: {options}" if options else str(settings["method"])


def _quality(evaluation: Mapping[str, Any]) -> list[str]:
    lines = ["## What quantization costs", "", "| | |", "|---|---|"]
    for key, label in _MEASURED.items():
        lines.append(f"| {label} | {_measured(key, evaluation.get(key))} |")
    return lines


def _measured(key: str, value: object) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"evaluation: {key}={value!r}: give the output of `mixoff eval --json`.")
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _commands(name: str) -> list[str]:
    return [
        "## How to run it",
        "",
        "```sh",
        f"mixoff info {name}",
        f"mixoff chat --quantized-model-name {name}",
        "```",
        "",
        "```python",
        "import mixoff",
        "",
        f'model, cache = mixoff.build_model("{name}")',
        "```",
    ]
