"""Mixoff's modules in place of a model's own, and their cache. Knows modules, no files."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from mixoff.cache.cache import ExpertCache
from mixoff.cache.prefetcher import Prefetcher
from mixoff.checkpoints.formats import RunnableCheckpoint
from mixoff.config import OffloadConfig
from mixoff.errors import CheckpointError
from mixoff.families.modules import Attention, RMSNorm, Router
from mixoff.kernels import Kernels
from mixoff.models.layers.attention import OneTokenAttention
from mixoff.models.layers.experts import OffloadedExperts, gates_and_experts
from mixoff.models.layers.head import HeadWithoutOneDNN
from mixoff.models.layers.linear import QuantizedLinear
from mixoff.models.layers.router_norm import OneTokenNorm, OneTokenRouter
from mixoff.models.layers.sdpa import NAME, SDPA
from mixoff.models.transformers_seam import (
    attention_implementation,
    set_attention_implementation,
    tied_parameters,
)
from mixoff.predictors.registry import predictor_named
from mixoff.tiers.aligned import aligned_buffer

# The class of a model's own module, and what makes the one that replaces it.
_ONE_TOKEN: dict[type, Callable[[Any, Any], nn.Module]] = {
    Attention: lambda own, config: OneTokenAttention(config, own.layer_idx),
    RMSNorm: lambda own, _: OneTokenNorm(len(own.weight), own.variance_epsilon),
    Router: lambda _, config: OneTokenRouter(config),  # type: ignore[no-untyped-call]
}


def replace_for_one_token(model: PreTrainedModel) -> None:
    """Replace attention, norms, routers and the head by modules that are fast for one token.

    Results differ from transformers' by rounding. ``model.set_attn_implementation("sdpa")`` undoes
    it for attention, which is left alone if another implementation is set than transformers'
    default. The model's weights aren't loaded yet, and no hook is on its modules.
    """
    for name, module in list(model.named_modules()):
        if (replacement := _ONE_TOKEN.get(type(module))) is not None:
            model.set_submodule(name, replacement(module, model.config))
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers' own
    if type(head) is nn.Linear:
        model.set_output_embeddings(  # type: ignore[no-untyped-call]
            HeadWithoutOneDNN(head.in_features, head.out_features, head.bias is not None)
        )
    if attention_implementation(model.config) == SDPA:
        set_attention_implementation(model.config, NAME)


def replace_attention(model: nn.Module, checkpoint: RunnableCheckpoint) -> None:
    """Replace each matrix of attention by a layer with a record of packed bytes."""
    for name, module in list(model.named_modules()):
        weight = f"{name}.weight"
        if isinstance(module, nn.Linear) and checkpoint.architecture.is_packed(weight):
            shape = (module.out_features, module.in_features)
            layout = checkpoint.attention_layout(weight, shape)
            model.set_submodule(name, QuantizedLinear(module, layout))


def replace_experts(model: nn.Module) -> list[str]:
    """Replace each layer's experts by those that a cache holds, and return the modules' names.

    Raises
    ------
    CheckpointError
        If the model has none.
    """
    names = expert_modules(model)
    if not names:
        raise CheckpointError(f"{type(model).__name__} has no experts that mixoff knows.")
    for layer, name in enumerate(names):
        model.set_submodule(name, OffloadedExperts(model.get_submodule(name), layer))
    return names


def expert_modules(model: nn.Module) -> list[str]:
    """Return the names of transformers' own modules of experts, in layers' order."""
    return [name for name, module in model.named_modules() if hasattr(module, "gate_up_proj")]


def check_tensors(model: PreTrainedModel, checkpoint: RunnableCheckpoint) -> None:
    """Refuse a checkpoint without all tensors, since transformers would initialize the others.

    Raises
    ------
    CheckpointError
        If one is missing, or of another shape.
    """
    prefix = f"{model.base_model_prefix}."
    shapes = {name: tensor.shape for name, tensor in checkpoint.non_expert.items()}
    shapes |= {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    tied = tied_parameters(model)
    for name, parameter in model.named_parameters():
        if name not in tied and shapes.get(name) != tuple(parameter.shape):
            raise CheckpointError(
                f"{checkpoint.path}: {name} is {shapes.get(name, 'missing')}; config.json asks for "
                f"{tuple(parameter.shape)}: fetch or convert the checkpoint again."
            )


def settle_parameters(model: nn.Module) -> None:
    """Let parameters need no gradient, and copy those that lie in a file's pages."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # or a step would keep every matrix that it dequantized
        if not parameter.untyped_storage().resizable():  # mapped: its file may change or shrink
            parameter.data = _copy(parameter.data)


def _copy(tensor: Tensor) -> Tensor:
    """Return a copy, in huge pages if it is large: products take fewer look-ups of pages."""
    copy = aligned_buffer(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)


def attach(model: nn.Module, cache: ExpertCache, offload: OffloadConfig) -> None:
    """Connect each layer's experts to the cache, and to one prefetcher for all."""
    pairs = gates_and_experts(model)
    predictor = predictor_named(offload.predictor, [gate for gate, _ in pairs])
    prefetcher = Prefetcher(
        cache, predictor, experts=offload.prefetch, layers_ahead=offload.layers_ahead
    )
    for _, experts in pairs:
        experts.connect(cache, prefetcher)


def give_kernels(
    model: nn.Module, cache: ExpertCache, kernels: Kernels, host_kernels: Kernels
) -> None:
    """Set the kernels for packed matrices on the model's device, and for those in host memory."""
    kernels.reserved_threads = host_kernels.reserved_threads = cache.reserved_threads
    for module in model.modules():
        if isinstance(module, QuantizedLinear | OffloadedExperts):
            module.kernels = kernels
        if isinstance(module, OffloadedExperts):
            module.host_kernels = host_kernels
