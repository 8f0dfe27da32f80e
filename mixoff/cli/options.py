"""The options of commands. Knows their types, help and completion; does nothing with them."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mixoff.known_models import MIXTRAL_OFFLOADING, ORIGINAL_CHECKPOINT
from mixoff.policies.registry import LIVE_POLICIES, POLICIES

MIXTRAL = ORIGINAL_CHECKPOINT


class Device(str, Enum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Miss(str, Enum):
    """How a missed expert in host memory is served, with a GPU."""

    fetch = "fetch"
    compute = "compute"
    auto = "auto"


class Bits(str, Enum):
    """Bits of a quantized weight."""

    none = "none"
    eight = "8"
    four = "4"
    three = "3"
    two = "2"


def complete_policy(incomplete: str) -> list[str]:
    """Return the live policies whose names begin with a text."""
    return [name for name in LIVE_POLICIES if name.startswith(incomplete)]


def complete_policies(incomplete: str) -> list[str]:
    """Return the completions of a list of policies, separated by commas, that ends with a text."""
    complete, comma, last = incomplete.rpartition(",")
    names = (*POLICIES, "floor")
    return [complete + comma + name for name in names if name.startswith(last)]


def complete_checkpoint(incomplete: str) -> list[str]:
    """Return the folders, and the published checkpoint, whose names begin with a text."""
    pattern = Path(f"{incomplete}*")
    folders = (str(path) for path in pattern.parent.glob(pattern.name) if path.is_dir())
    names = [MIXTRAL_OFFLOADING, *sorted(folders)]
    return [name for name in names if name.startswith(incomplete)]


def valid_text(text: str | None) -> str | None:
    """Return a command line's text with bytes that aren't UTF-8 replaced."""
    return text if text is None else text.encode("utf-8", "replace").decode()


CheckpointName = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A mixoff checkpoint: a folder, or a name on the Hugging Face hub.",
        autocompletion=complete_checkpoint,
    ),
]
ModelName = Annotated[
    str, typer.Option(help="The model whose tokenizer is used if the checkpoint has none.")
]
QuantizedModelName = Annotated[
    str,
    typer.Option(
        help="The checkpoint: a folder, or a name on the Hugging Face hub.",
        autocompletion=complete_checkpoint,
    ),
]
OffloadPerLayer = Annotated[
    int, typer.Option(help="How many of a layer's experts start outside the device.")
]
PolicyName = Annotated[
    str,
    typer.Option(
        help=f"Which resident expert is evicted first: {', '.join(LIVE_POLICIES)}.",
        autocompletion=complete_policy,
    ),
]
DeviceMemory = Annotated[
    str | None,
    typer.Option(
        help="Memory of the device to use in all, such as 10GiB, or auto for what is free: "
        "instead of --offload-per-layer.",
        show_default=False,
    ),
]
Prefetch = Annotated[
    int,
    typer.Option(min=0, help="Experts that are predicted for the next layer and fetched ahead."),
]
MissOption = Annotated[
    Miss,
    typer.Option(
        help="With a GPU, how a missed expert in host memory is served: copied into a slot, "
        "computed on the CPU, or whichever takes less time."
    ),
]
HostMemory = Annotated[
    str, typer.Option(help="Host memory for records off the device, such as 10GiB, or auto.")
]
DeviceOption = Annotated[
    Device, typer.Option(help="Where to compute; auto uses CUDA if there is a GPU for it.")
]
Temperature = Annotated[float, typer.Option(min=0, help="0 always takes the most probable token.")]
TopP = Annotated[
    float, typer.Option(min=0, max=1, help="Draw from the most probable tokens of this share.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="The most tokens of a reply.")]
Seed = Annotated[
    int | None, typer.Option(help="The same seed gives the same replies; without it one is drawn.")
]
System = Annotated[
    str | None,
    typer.Option(
        callback=valid_text, show_default=False, help="Instructions for the whole conversation."
    ),
]
Prompt = Annotated[
    str | None, typer.Option(callback=valid_text, show_default=False, help="Answer this, and end.")
]
RequiredPrompt = Annotated[
    str, typer.Option("--prompt", callback=valid_text, show_default=False, help="What to answer.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
Context = Annotated[
    int | None, typer.Option(min=1, help="Tokens that the KV cache holds.", show_default=False)
]
