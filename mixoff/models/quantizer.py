"""The quantizer that transformers calls while it loads a mixoff checkpoint."""

import re
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

from mixoff.checkpoints.quantization_config import (
    QUANT_METHOD,
    quantization_settings,
    scheme_from_settings,
)
from mixoff.errors import ConfigError, MixoffError
from mixoff.kernels import TorchKernels
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
from mixoff.models.run import Run, prepare
from mixoff.models.transformers_seam import ignore_unexpected
from mixoff.planning.plan import compute_dtype
from mixoff.quantization import Unquantized


def register() -> None:
    """Make mixoff checkpoints known to transformers, so that ``from_pretrained`` loads them.

    This adds names to transformers' tables of quantizers and of attention functions, for the whole
    process. Calling it again does nothing. `build_model` calls it.
    """
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(QUANT_METHOD)(MixoffQuantizationConfig)
        register_quantizer(QUANT_METHOD)(MixoffQuantizer)
        register_attention()


class MixoffQuantizationConfig(QuantizationConfigMixin):
    """What ``config.json`` holds of a mixoff checkpoint, and the run that a model is built for.

    `build` passes the run; ``from_pretrained`` alone passes none.
    """

    def __init__(self, *, run: Run | None = None, **settings: Any) -> None:
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]  # an enum of transformers' own
        self.run = run
        self.scheme = run.checkpoint.scheme if run else scheme_from_settings(settings)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` holds, which has no settings of a run."""
        return quantization_settings(self.scheme)


class MixoffQuantizer(HfQuantizer):
    """Replaces modules by mixoff's before transformers reads weights, and makes the cache after."""

    requires_calibration = False
    is_trainable = False
    quantization_config: MixoffQuantizationConfig

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Remember the device that the model will lie on.

        Raises
        ------
        ConfigError
            If there are several devices, or transformers would choose one.
        """
        if isinstance(device_map, str) or len(set(map(str, (device_map or {}).values()))) > 1:
            raise ConfigError(
                f"device_map={device_map!r}: mixoff keeps a model on one device, "
                "so name one, as 'cpu' or 'cuda'."
            )
        self._device = torch.device(next(iter((device_map or {}).values()), "cpu"))

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the run's type, else float32 for float16 on a CPU."""
        run = self.quantization_config.run
        return (run and run.dtype) or compute_dtype(dtype, self._device)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Refuse to be saved again.

        Raises
        ------
        MixoffError
            Always.
        """
        raise MixoffError(
            f"this model's experts stay in {self._run.checkpoint.path}: "
            "copy that folder instead of saving the model."
        )

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        run = self._run = self.quantization_config.run or self._prepared(checkpoint_files)
        run.checkpoint.verify()
        if _has_one_token_kernels(run):
            replace_for_one_token(model)
        replace_attention(model, run.checkpoint)
        experts = replace_experts(model)
        check_tensors(model, run.checkpoint)
        for name in experts:  # their records, which transformers finds in the files
            ignore_unexpected(model, rf"{re.escape(name)}\.")

    def _prepared(self, checkpoint_files: list[str] | None) -> Run:
        """Return the run of ``from_pretrained`` alone."""
        if not checkpoint_files:
            raise MixoffError("mixoff needs a checkpoint folder to take experts from.")
        return prepare(Path(checkpoint_files[0]).parent, device=self._device)

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        run = self._run
        settle_parameters(model)
        cache = expert_cache(run.checkpoint, run.offload, run.plan, run.device)
        attach(model, cache, run.offload)
        # Copies, since kernels get to know the cache, and several models may be built from a run.
        give_kernels(model, cache, copy(run.kernels), copy(run.host_kernels))
        return model


def _has_one_token_kernels(run: Run) -> bool:
    """Return whether kernels take more than one matrix at a time, and results differ by rounding.

    With unquantized attention results are transformers' to the bit.
    """
    quantized = not isinstance(run.checkpoint.scheme.attention, Unquantized)
    return quantized and run.device.type == "cpu" and not isinstance(run.kernels, TorchKernels)
