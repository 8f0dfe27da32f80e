"""From a checkpoint to a transformers model and its cache. Knows transformers' loading hooks."""

from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)
from transformers.activations import ACT2FN
from transformers.models.mixtral.modeling_mixtral import MixtralRotaryEmbedding
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from mixoff.assembly import expert_cache
from mixoff.attachment import (
    attach,
    check_tensors,
    give_kernels,
    replace_attention,
    replace_experts,
    settle_parameters,
)
from mixoff.cache import ExpertCache, cache_of
from mixoff.config import OffloadConfig
from mixoff.documents import read_json, shortened
from mixoff.errors import CheckpointError, ConfigError, MixoffError
from mixoff.formats import AnyCheckpoint, open_checkpoint
from mixoff.hub import named_checkpoint
from mixoff.kernels import Kernels, kernels_beside, kernels_named
from mixoff.mixtral import SETTINGS
from mixoff.plan import MemoryPlan, compute_dtype, plan_memory
from mixoff.settings import QUANT_METHOD, quantization_settings, scheme_from_settings


def build_model(
    name_or_path: str | Path,
    offload: OffloadConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    kernels: str = "auto",
) -> tuple[PreTrainedModel, ExpertCache]:
    """Build a transformers model whose experts pass through a cache, and return (model, cache).

    Parameters
    ----------
    name_or_path
        A mixoff checkpoint: a folder, or on the Hugging Face hub ``owner/repository`` or
        ``owner/repository@revision``.
    offload
        How many experts start outside the device, and which policy keeps the others there.
    device
        Where the trunk and the cache's slots lie.
    dtype
        The type to compute in; by default the checkpoint's own, and float32 on a CPU, where most
        processors have no fast 16-bit arithmetic.
    kernels
        Who multiplies by packed weights: "torch", which dequantizes a matrix first; "cpu", which
        needs llvmlite; "triton", which needs Triton and a GPU of compute capability 7.0 or more;
        "auto" for the fastest of what can be had.

    Raises
    ------
    CheckpointError
        If the checkpoint is missing, damaged or of another format.
    ConfigError
        If `offload` can't be met by this model or by what memory is free, or the device or the
        kernels can't be used.
    """
    path = named_checkpoint(name_or_path).folder
    checkpoint = open_checkpoint(path)  # says what is wrong before transformers stumbles over it
    offload = offload or OffloadConfig()
    device = _usable(device)
    multiplies = kernels_named(kernels, device)
    plan = plan_memory(checkpoint, offload, device=device, dtype=dtype, kernels=multiplies)
    register()
    config = _settings(checkpoint)
    config.quantization_config = {
        "quant_method": QUANT_METHOD,
        "checkpoint": checkpoint,
        "offload": offload,
        "plan": plan,
        "dtype": dtype,
        "kernels": multiplies,
        "kernels_beside": kernels_beside(kernels),
    }
    options: dict[str, Any] = {"dtype": dtype} if dtype is not None else {}
    if device.type != "cpu":
        options["device_map"] = {"": device}
    try:
        model = _load(checkpoint, config=config, **options)
    except SafetensorError as error:  # the library may be stricter than mixoff
        raise CheckpointError(f"{path}: can't be read ({shortened(str(error))}).") from None
    return model, cache_of(model)


def register() -> None:
    """Make mixoff checkpoints known to transformers, so that ``from_pretrained`` loads them.

    Calling it again does nothing. `build_model` calls it.
    """
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(QUANT_METHOD)(MixoffQuantizationConfig)
        register_quantizer(QUANT_METHOD)(MixoffQuantizer)


class MixoffQuantizationConfig(QuantizationConfigMixin):
    """What ``config.json`` holds of a mixoff checkpoint, and how this run offloads and computes.

    `build_model` gives the opened checkpoint and its plan, made while nothing is loaded yet.
    """

    def __init__(
        self,
        *,
        checkpoint: AnyCheckpoint | None = None,
        offload: OffloadConfig | None = None,
        plan: MemoryPlan | None = None,
        dtype: torch.dtype | None = None,
        kernels: Kernels | None = None,
        kernels_beside: Kernels | None = None,
        **settings: Any,
    ) -> None:
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]  # an enum of transformers' own
        self.checkpoint = checkpoint
        self.scheme = checkpoint.scheme if checkpoint else scheme_from_settings(settings)
        self.offload = offload or OffloadConfig()
        self.plan = plan
        self.dtype = dtype
        self.kernels = kernels
        self.kernels_beside = kernels_beside

    def to_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` holds; how a run goes is no part of it."""
        return quantization_settings(self.scheme)


class MixoffQuantizer(HfQuantizer):
    """Puts mixoff's modules in place before transformers reads weights, and the cache after."""

    requires_calibration = False
    is_trainable = False
    quantization_config: MixoffQuantizationConfig

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Note whether the model will lie on a CPU.

        Raises
        ------
        ConfigError
            If it is to lie on several devices, or transformers is to choose.
        """
        if isinstance(device_map, str) or len(set(map(str, (device_map or {}).values()))) > 1:
            raise ConfigError(
                f"device_map={device_map!r}: mixoff keeps a model on one device, "
                "so name one, as 'cpu' or 'cuda'."
            )
        self._on_cpu = device_map is None or set(map(str, device_map.values())) <= {"cpu"}

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return what `build_model` was asked for, else float32 for float16 on a CPU."""
        asked = self.quantization_config.dtype
        return asked or compute_dtype(dtype, torch.device("cpu" if self._on_cpu else "cuda"))

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Refuse to be saved again.

        Raises
        ------
        MixoffError
            Always.
        """
        raise MixoffError(
            f"this model's experts stay in {self._checkpoint.path}: "
            "copy that folder instead of saving the model."
        )

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        self._checkpoint = self._opened(checkpoint_files)
        self._plan = self.quantization_config.plan or plan_memory(
            self._checkpoint,
            self.quantization_config.offload,
            device="cpu" if self._on_cpu else "cuda",
            dtype=self.quantization_config.dtype,
            kernels=self.quantization_config.kernels,
        )
        self._checkpoint.verify()
        replace_attention(model, self._checkpoint)
        replace_experts(model)
        check_tensors(model, self._checkpoint)
        ignored = set(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
        model._keys_to_ignore_on_load_unexpected = ignored | {r"\.mlp\.experts\."}  # type: ignore[assignment]

    def _opened(self, checkpoint_files: list[str] | None) -> AnyCheckpoint:
        if (checkpoint := self.quantization_config.checkpoint) is not None:
            return checkpoint
        if not checkpoint_files:
            raise MixoffError("mixoff needs a checkpoint folder to take experts from.")
        return open_checkpoint(Path(checkpoint_files[0]).parent)

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        settle_parameters(model)
        offload, device = self.quantization_config.offload, next(model.parameters()).device
        cache = expert_cache(self._checkpoint, offload, self._plan, device)
        attach(model, cache, offload)
        kernels = self.quantization_config.kernels or kernels_named("auto", device)
        beside = self.quantization_config.kernels_beside
        beside = beside or kernels_named("auto", "cpu")
        give_kernels(model, cache, copy(kernels), copy(beside))  # settings know of no cache
        return model


def _settings(checkpoint: AnyCheckpoint) -> MixtralConfig:
    """Return a config.json's settings as transformers has them, those of generation tried."""
    path = checkpoint.path / "config.json"
    try:
        config = MixtralConfig(**{n: v for n, v in checkpoint.config.items() if n in SETTINGS})
        MixtralRotaryEmbedding(config)
        ACT2FN[config.hidden_act]
        path = checkpoint.path / "generation_config.json"
        if path.exists():
            GenerationConfig.from_dict(read_json(path))
    except (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = shortened(" ".join(str(error).split()))
        raise CheckpointError(f"{path}: transformers refuses its settings ({reason}).") from None
    return config


def _load(checkpoint: AnyCheckpoint, **options: Any) -> PreTrainedModel:
    state = checkpoint.trunk_state()
    if state is None:
        return AutoModelForCausalLM.from_pretrained(checkpoint.path, **options)
    model = MixtralForCausalLM.from_pretrained(None, state_dict=state, **options)
    model.name_or_path = model.config.name_or_path = str(checkpoint.path)
    with suppress(OSError):  # most have no such file
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.path)
    return model


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:  # unknown, or not there
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"device={str(device)!r}: {reason}; give cpu, or cuda with a GPU."
        ) from None
