"""The command line. Knows options, tables and exit statuses; what they do is elsewhere.

torch and transformers are imported inside commands only, so that help and completion are quick.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum
from math import prod
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from mixoff import __version__
from mixoff.config import OffloadConfig, format_nbytes
from mixoff.errors import CheckpointError, ConfigError, MixoffError
from mixoff.policies import POLICIES
from mixoff.terminal import (
    Session,
    answer_json,
    answer_text,
    one_line,
    printable,
    progress,
    turns,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mixoff.cache import ExpertCache
    from mixoff.checkpoint import Checkpoint
    from mixoff.generate import Chat
    from mixoff.plan import MemoryPlan
    from mixoff.quantization import Quantization

_MIXTRAL = "mistralai/Mixtral-8x7B-Instruct-v0.1"
_RELEASED = "lavawolfiee/Mixtral-8x7B-Instruct-v0.1-offloading-demo"
_INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


class Device(str, Enum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Bits(str, Enum):
    """Bits of a quantized weight."""

    none = "none"
    eight = "8"
    four = "4"
    three = "3"
    two = "2"


class _OneLineErrors(TyperGroup):
    """Commands that refuse with one line on stderr."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here a closed pipe can still be handled
            return result
        except MixoffError as error:
            _complain(one_line(error))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            _complain("interrupted")
            raise typer.Exit(_INTERRUPTED) from None


def _complain(line: str) -> None:
    print(f"mixoff: {line}", file=sys.stderr)


def _complete_policy(incomplete: str) -> list[str]:
    return [name for name in POLICIES if name.startswith(incomplete)]


def _complete_checkpoint(incomplete: str) -> list[str]:
    folders = Path().glob(f"{incomplete}*/") if not Path(incomplete).is_absolute() else ()
    names = [_RELEASED, *(str(path) for path in folders if path.is_dir())]
    return [name for name in names if name.startswith(incomplete)]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"mixoff {__version__}")
        raise typer.Exit


_Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A mixoff checkpoint: a folder, or a name on the Hugging Face hub.",
        autocompletion=_complete_checkpoint,
    ),
]
_ModelName = Annotated[
    str, typer.Option(help="Where the tokenizer comes from if the checkpoint has none.")
]
_QuantizedModelName = Annotated[
    str,
    typer.Option(
        help="The checkpoint: a folder, or a name on the Hugging Face hub.",
        autocompletion=_complete_checkpoint,
    ),
]
_OffloadPerLayer = Annotated[
    int, typer.Option(help="How many of a layer's experts start outside the device.")
]
_Policy = Annotated[
    str,
    typer.Option(
        help=f"Which resident expert leaves first: {', '.join(POLICIES)}.",
        autocompletion=_complete_policy,
    ),
]
_HostMemory = Annotated[
    str, typer.Option(help="Host memory for records off the device, such as 10GiB.")
]
_DeviceOption = Annotated[
    Device, typer.Option(help="Where to compute; auto takes CUDA where there is a GPU for it.")
]
_Temperature = Annotated[
    float, typer.Option(min=0, help="0 always takes the most probable token.")
]
_TopP = Annotated[
    float, typer.Option(min=0, max=1, help="Draw from the most probable tokens of this share.")
]
_MaxNewTokens = Annotated[int, typer.Option(min=1, help="The longest reply.")]
_Seed = Annotated[
    int | None, typer.Option(help="The same seed gives the same replies; without it one is drawn.")
]
_System = Annotated[str | None, typer.Option(help="Instructions for the whole conversation.")]
_Prompt = Annotated[str | None, typer.Option(help="Answer this, and end.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]

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
    offload_per_layer: _OffloadPerLayer = 4,
    policy: _Policy = "lru",
    host_memory: _HostMemory = "0",
    device: _DeviceOption = Device.auto,
    temperature: _Temperature = 0.0,
    top_p: _TopP = 0.9,
    max_new_tokens: _MaxNewTokens = 256,
    seed: _Seed = 0,
    system: _System = None,
    prompt: _Prompt = None,
    as_json: _Json = False,
) -> None:
    """Chat with the demo model, which needs no network; through a pipe, each line is a message."""
    from mixoff import demo_path

    offload = _offload(offload_per_layer, policy, host_memory)
    model, cache, tokenizer = _load(str(demo_path()), offload, device, None)
    from mixoff import Chat

    chat = Chat(
        model,
        tokenizer,
        system=system,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    _converse(chat, cache, "The demo model", prompt, as_json)


@app.command()
def chat(
    model_name: _ModelName = _MIXTRAL,
    quantized_model_name: _QuantizedModelName = _RELEASED,
    offload_per_layer: _OffloadPerLayer = 5,
    temperature: _Temperature = 0.9,
    top_p: _TopP = 0.9,
    max_new_tokens: _MaxNewTokens = 512,
    policy: _Policy = "lru",
    host_memory: _HostMemory = "0",
    device: _DeviceOption = Device.auto,
    seed: _Seed = None,
    system: _System = None,
    prompt: _Prompt = None,
    as_json: _Json = False,
) -> None:
    """Chat with a quantized checkpoint; through a pipe, each line is a message."""
    offload = _offload(offload_per_layer, policy, host_memory)
    model, cache, tokenizer = _load(quantized_model_name, offload, device, model_name)
    from mixoff import Chat

    chat = Chat(
        model,
        tokenizer,
        system=system,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    _converse(chat, cache, quantized_model_name, prompt, as_json)
