"""Mixoff's modules in place of a model's, and what they are given. Knows modules; no files."""

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import (
    MixtralAttention,
    MixtralRMSNorm,
    MixtralTopKRouter,
)

from mixoff.cache.cache import ExpertCache
from mixoff.cache.prefetcher import Prefetcher
from mixoff.checkpoints.formats import AnyCheckpoint
from mixoff.config import OffloadConfig
from mixoff.errors import CheckpointError
from mixoff.kernels import Kernels, TorchKernels
from mixoff.models.layers.attention import OneTokenAttention
from mixoff.models.layers.experts import OffloadedExperts
from mixoff.models.layers.head import HeadWithoutOneDNN
from mixoff.models.layers.linear import QuantizedLinear
from mixoff.models.layers.router_norm import OneTokenNorm, OneTokenRouter
from mixoff.models.layers.sdpa import use_grouped_attention
from mixoff.predictors.registry import predictor_named
from mixoff.quantization import Unquantized
from mixoff.tiers.aligned import aligned_buffer

_FOR_ONE_TOKEN: dict[type, type] = {
    MixtralAttention: OneTokenAttention,
    MixtralRMSNorm: OneTokenNorm,
    MixtralTopKRouter: OneTokenRouter,
}


def attach(model: nn.Module, cache: ExpertCache, offload: OffloadConfig) -> None:
    """Give each layer's experts the cache, and what guesses for it."""
    blocks = _blocks(model)
    gates = [block.get_submodule("gate") for block, _ in blocks]
    predictor = predictor_named(offload.predictor, gates)
    prefetcher = Prefetcher(
        cache, predictor, experts=offload.prefetch, layers_ahead=offload.layers_ahead
    )
    for _, experts in blocks:
        experts.cache, experts.prefetcher = cache, prefetcher


def _blocks(model: nn.Module) -> list[tuple[nn.Module, OffloadedExperts]]:
    """Return the blocks that have a gate and experts, with these."""
    found = [(block, _experts_of(block)) for block in model.modules()]
    return [(block, experts) for block, experts in found if experts is not None]


def _experts_of(block: nn.Module) -> OffloadedExperts | None:
    """Return the experts that stand beside a gate in a block of the model."""
    children = block.children() if hasattr(block, "gate") else ()
    return next((child for child in children if isinstance(child, OffloadedExperts)), None)


def give_kernels(
    model: PreTrainedModel, cache: ExpertCache, kernels: Kernels, beside: Kernels
) -> None:
    """Say who multiplies by packed matrices on the model's device, and beside it on the CPU."""
    kernels.reserved_threads = beside.reserved_threads = cache.busy_cores
    packed = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    quantized = any(not isinstance(one.layout.quantization, Unquantized) for one in packed)
    if quantized and cache.device.type == "cpu" and not isinstance(kernels, TorchKernels):
        use_grouped_attention(model)  # else results stay transformers' to the bit
        for module in model.modules():
            if type(module) in _FOR_ONE_TOKEN:  # which have all that their heirs need
                module.__class__ = _FOR_ONE_TOKEN[type(module)]
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers' own
        if type(head) is nn.Linear:
            head.__class__ = HeadWithoutOneDNN
    for module in model.modules():
        if isinstance(module, QuantizedLinear | OffloadedExperts):
            module.kernels = kernels
        if isinstance(module, OffloadedExperts):
            module.host_kernels = beside


def replace_attention(model: nn.Module, checkpoint: AnyCheckpoint) -> None:
    """Let each matrix of attention be a record of packed bytes."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".self_attn." in name:
            shape = (module.out_features, module.in_features)
            layout = checkpoint.attention_layout(f"{name}.weight", shape)
            model.set_submodule(name, QuantizedLinear(module, layout))


def replace_experts(model: nn.Module) -> None:
    """Let each layer's experts come from a cache.

    Raises
    ------
    CheckpointError
        If the model has none.
    """
    found = [name for name, module in model.named_modules() if hasattr(module, "gate_up_proj")]
    if not found:
        raise CheckpointError(f"{type(model).__name__} has no experts that mixoff knows.")
    for layer, name in enumerate(found):
        model.set_submodule(name, OffloadedExperts(model.get_submodule(name), layer))


def settle_parameters(model: nn.Module) -> None:
    """Let parameters need no gradient, and lie in no file's pages."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # or a step would keep every matrix that it dequantized
        if not parameter.untyped_storage().resizable():  # mapped: its file may change or shrink
            parameter.data = _copy(parameter.data)


def _copy(tensor: Tensor) -> Tensor:
    """Return a copy, in huge pages if it is large: products look up fewer."""
    copy = aligned_buffer(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)


def check_tensors(model: nn.Module, checkpoint: AnyCheckpoint) -> None:
    """Refuse a checkpoint without all tensors: transformers would make the others up.

    Raises
    ------
    CheckpointError
        If one is missing, or of another shape.
    """
    prefix = f"{model.base_model_prefix}."
    found = {name: tensor.shape for name, tensor in checkpoint.non_expert.items()}
    found |= {name.removeprefix(prefix): shape for name, shape in found.items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for name, parameter in model.named_parameters():
        if name not in tied and found.get(name) != tuple(parameter.shape):
            raise CheckpointError(
                f"{checkpoint.path}: {name} is {found.get(name, 'missing')}; config.json asks for "
                f"{tuple(parameter.shape)}: fetch or convert the checkpoint again."
            )
