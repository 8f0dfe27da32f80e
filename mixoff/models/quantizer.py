"""The quantizer that transformers calls while it loads a mixoff checkpoint."""

from copy import copy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from mixoff.checkpoints.formats import RunnableCheckpoint, open_checkpoint
from mixoff.checkpoints.quantization_config import (
    QUANT_METHOD,
    quantization_settings,
    scheme_from_settings,
)
from mixoff.config import OffloadConfig
from mixoff.errors import ConfigError, MixoffError
from mixoff.kernels import Kernels, TorchKernels, kernels_named
from mixoff.models.assemble import expert_cache
from mixoff.models.layers.sdpa import register_attention
from mixoff.models.replace import (
    attach,
    check_tensors,
    give_kernels,
    replace_attention,
    replace_experts,
    replace_for_one_token,
    settle_parameters,
)
from mixoff.models.transformers_seam import ignore_unexpected
from mixoff.planning.plan import MemoryPlan, compute_dtype, plan_memory
from mixoff.quantization import Unquantized


def register() -> None:
    """Make mixoff checkpoints known to transformers, so that ``from_pretrained`` loads them.

    This adds two names to transformers' tables, of quantizers and of attention functions, for the
    whole process. Calling it again does nothing. `build_model` calls it.
    """
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(QUANT_METHOD)(MixoffQuantizationConfig)
        register_quantizer(QUANT_METHOD)(MixoffQuantizer)
        register_attention()


class MixoffQuantizationConfig(QuantizationConfigMixin):
    """What ``config.json`` holds of a mixoff checkpoint, and how this run offloads and computes.

    `build_model` gives the opened checkpoint and its plan, made while nothing is loaded yet.
    """

    def __init__(
        self,
        *,
        checkpoint: RunnableCheckpoint | None = None,
        offload: OffloadConfig | None = None,
        plan: MemoryPlan | None = None,
        dtype: torch.dtype | None = None,
        kernels: Kernels | None = None,
        host_kernels: Kernels | None = None,
        **settings: Any,
    ) -> None:
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]  # an enum of transformers' own
        self.checkpoint = checkpoint
        self.scheme = checkpoint.scheme if checkpoint else scheme_from_settings(settings)
        self.offload = offload or OffloadConfig()
        self.plan = plan
        self.dtype = dtype
        self.kernels = kernels
        self.host_kernels = host_kernels

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
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
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
        device = "cpu" if self._on_cpu else "cuda"
        self._kernels = self.quantization_config.kernels or kernels_named("auto", device)
        if self._has_one_token_kernels():
            replace_for_one_token(model)
        replace_attention(model, self._checkpoint)
        replace_experts(model)
        check_tensors(model, self._checkpoint)
        ignore_unexpected(model, r"\.mlp\.experts\.")

    def _has_one_token_kernels(self) -> bool:
        """Return whether results may differ from transformers' own by rounding, and how fast."""
        quantized = not isinstance(self._checkpoint.scheme.attention, Unquantized)
        return quantized and self._on_cpu and not isinstance(self._kernels, TorchKernels)

    def _opened(self, checkpoint_files: list[str] | None) -> RunnableCheckpoint:
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
        host_kernels = self.quantization_config.host_kernels or kernels_named("auto", "cpu")
        give_kernels(model, cache, copy(self._kernels), copy(host_kernels))  # settings keep theirs
        return model
