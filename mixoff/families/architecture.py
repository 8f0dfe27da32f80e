"""What other rooms know of a model: its sizes, and the names and shapes of its tensors."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mixoff.errors import CheckpointError
from mixoff.quantization import Shape
from mixoff.safe_json import quoted, truncated

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Names that all of transformers' causal language models have for the tensors outside the layers.
EMBEDDINGS, LAST_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

_DTYPES = ("float32", "float16", "bfloat16")
# Settings at which transformers would run or fetch code, or read files that mixoff didn't check.
_CODE = (
    "auto_map",
    "custom_pipelines",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "kernel_config",
    "per_layer_config",
    "transformers_weights",
)


class Architecture(Protocol):
    """The sizes of a model, and the tensors that follow from them.

    Names are those that transformers' model of the family has for its tensors.
    """

    @property
    def num_layers(self) -> int:
        """Layers of the model."""

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""

    @property
    def hidden_size(self) -> int:
        """Numbers of a token's state between layers."""

    @property
    def intermediate_size(self) -> int:
        """Rows of an expert's gate, and of its up."""

    def transformers_config(self) -> "PreTrainedConfig":
        """Return the settings as transformers has them.

        Raises
        ------
        CheckpointError
            If transformers refuses them.
        """

    def layer_prefix(self, layer: int) -> str:
        """Return what the names of a layer's tensors begin with."""

    def is_packed(self, name: str) -> bool:
        """Return whether a tensor that is no expert is a matrix that is stored packed."""

    def non_expert_shapes(self) -> Iterator[tuple[str, Shape]]:
        """Yield name and shape of every tensor that is no expert, layer by layer."""

    def experts_tensor(self, layer: int) -> str:
        """Return the name of the tensor that has gate and up of all of a layer's experts."""

    def expert_tensors(
        self, layer: int, expert: int | None = None
    ) -> Mapping[str, list[tuple[str, Shape]]]:
        """Return the tensors of which each matrix of an expert consists, row under row.

        By the matrix' name in a record: gate_up_proj [2I, H] and down_proj [H, I]. Without an
        expert, the tensors of a checkpoint that has a layer's experts stacked.
        """

    def model_names(self, stored: Iterable[str]) -> list[str]:
        """Return the model's name of each tensor of an unquantized checkpoint's files."""


def refusal(source: Path, name: str, value: object, rule: str) -> CheckpointError:
    """Return the error that a setting of a file breaks a rule."""
    return CheckpointError(f"{source}: {name}={quoted(value)}: {rule}.")


def check_settings(config: Mapping[str, Any], source: Path) -> None:
    """Refuse settings of any family that ask for code, or for a type that mixoff doesn't read.

    Raises
    ------
    CheckpointError
        If there is one.
    """
    for name in _CODE:
        if config.get(name) is not None:
            raise CheckpointError(
                f"{source}: asks for code of its own ({name}), and mixoff runs none: "
                "remove that entry if you trust the rest."
            )
    for name in ("dtype", "torch_dtype"):
        if (dtype := config.get(name)) not in (None, *_DTYPES):
            raise refusal(source, name, dtype, f"give one of {', '.join(_DTYPES)}")


@contextmanager
def transformers_refusals(source: Path) -> Iterator[None]:
    """Raise CheckpointError for whatever transformers raises over a file's settings."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = truncated(" ".join(str(error).split()))
        raise CheckpointError(f"{source}: transformers refuses its settings ({reason}).") from None
