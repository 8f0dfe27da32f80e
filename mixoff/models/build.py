"""From a checkpoint to a transformers model and its cache. Knows transformers' loading."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from mixoff.cache.cache import ExpertCache, cache_of
from mixoff.checkpoints.formats import RunnableCheckpoint
from mixoff.checkpoints.quantization_config import QUANT_METHOD
from mixoff.config import OffloadConfig
from mixoff.errors import CheckpointError
from mixoff.families.architecture import transformers_refusals
from mixoff.models.quantizer import register
from mixoff.models.run import Run, prepare
from mixoff.safe_json import read_json, truncated


def build_model(
    name_or_path: str | Path,
    offload: OffloadConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    kernels: str = "auto",
) -> tuple[PreTrainedModel, ExpertCache]:
    """Build a transformers model whose experts pass through a cache, and return (model, cache).

    On a CPU, compiled kernels switch PyTorch's oneDNN off, for the whole process, while the head
    computes one token in bfloat16; ``model.lm_head.without_onednn = False`` keeps it on.

    Parameters
    ----------
    name_or_path
        A mixoff checkpoint: a folder, or on the Hugging Face hub ``owner/repository`` or
        ``owner/repository@revision``.
    offload
        How many experts start outside the device, and which policy evicts the others.
    device
        Where the non-expert parameters and the cache's slots lie.
    dtype
        The type to compute in; by default the checkpoint's own, and float32 on a CPU, where most
        processors have no fast 16-bit arithmetic.
    kernels
        Kernels for products with packed weights: "torch", which dequantizes a matrix first; "cpu",
        which needs llvmlite; "triton", which needs Triton and a GPU of compute capability 7.0 or
        more; "auto" for the fastest that can be used.

    Raises
    ------
    CheckpointError
        If the checkpoint is missing, damaged or of another format.
    ConfigError
        If `offload` can't be met by this model or by what memory is free, or the device or the
        kernels can't be used.
    """
    return build(prepare(name_or_path, offload, device=device, dtype=dtype, kernels=kernels))


def build(run: Run) -> tuple[PreTrainedModel, ExpertCache]:
    """Build the model that a run was prepared for, and return (model, cache).

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged, or transformers refuses its settings.
    """
    register()
    config = _settings(run.checkpoint)
    config.quantization_config = {"quant_method": QUANT_METHOD, "run": run}
    options: dict[str, Any] = {"dtype": run.dtype} if run.dtype is not None else {}
    if run.device.type != "cpu":
        options["device_map"] = {"": run.device}
    try:
        model = _load(run.checkpoint, config, **options)
    except SafetensorError as error:  # the library may be stricter than mixoff
        reason = truncated(str(error))
        raise CheckpointError(f"{run.checkpoint.path}: can't be read ({reason}).") from None
    return model, cache_of(model)


def _settings(checkpoint: RunnableCheckpoint) -> PreTrainedConfig:
    """Return a checkpoint's settings as transformers has them; those of generation are checked."""
    config = checkpoint.architecture.transformers_config()
    path = checkpoint.path / "generation_config.json"
    if path.exists():
        with transformers_refusals(path):
            GenerationConfig.from_dict(read_json(path))
    return config


def _load(
    checkpoint: RunnableCheckpoint, config: PreTrainedConfig, **options: Any
) -> PreTrainedModel:
    state = checkpoint.non_expert_state()
    if state is None:
        return AutoModelForCausalLM.from_pretrained(checkpoint.path, config=config, **options)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = model_class.from_pretrained(None, config=config, state_dict=state, **options)
    assert isinstance(model, PreTrainedModel)
    model.name_or_path = model.config.name_or_path = str(checkpoint.path)
    with suppress(OSError):  # most have no such file
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.path)
    return model
