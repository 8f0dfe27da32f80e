"""The private names of transformers and torch that mixoff relies on: one function for each.

Everything else in the package uses documented names. ``tests/models/test_transformers_seam.py`` has
a test for each function here, which fails when a new release renames what it reads.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import SiLUActivation


def mark_initialized(module: nn.Module) -> None:
    """Keep transformers from initializing a module's parameters, as after they were loaded."""
    module._is_hf_initialized = True  # type: ignore[assignment]  # nn.Module's stub expects tensors


def ignore_unexpected(model: PreTrainedModel, pattern: str) -> None:
    """Let a checkpoint hold tensors that the model lacks, named by a regular expression."""
    patterns = set(model._keys_to_ignore_on_load_unexpected or ())
    model._keys_to_ignore_on_load_unexpected = patterns | {pattern}


def tied_parameters(model: PreTrainedModel) -> set[str]:
    """Return the names of the parameters that share another one's tensor, and aren't loaded."""
    return set(model.all_tied_weights_keys)


def attention_implementation(config: PreTrainedConfig) -> str:
    """Return the name of the attention function that a model uses: transformers' or ours."""
    return str(config._attn_implementation)


def set_attention_implementation(config: PreTrainedConfig, name: str) -> None:
    """Let a model use a registered attention function, also before its weights are loaded."""
    config._attn_implementation = name


def apply_gate(experts: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what an experts module computes between its matrices, [T, 2 inner] -> [T, inner]."""
    function: Callable[[Tensor], Tensor] = experts._apply_gate  # type: ignore[assignment]
    return function


def is_silu(experts: nn.Module) -> bool:
    """Return whether `apply_gate` is silu of the first half times the second, without hooks."""
    activation: Any = getattr(experts, "act_fn", None)
    is_known = type(activation) in (nn.SiLU, SiLUActivation)  # a subclass may compute another one
    return is_known and not has_hooks(activation)


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling a module does more or something else than its class's ``forward``."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def any_module_has_hooks() -> bool:
    """Return whether torch calls hooks around every module of the process."""
    return bool(_has_any_global_hook())  # type: ignore[no-untyped-call]
