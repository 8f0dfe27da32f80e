"""How weights are stored, as config.json has it. Knows settings; nothing of files or layouts."""

from collections.abc import Mapping
from typing import Any

import torch

from mixoff.errors import CheckpointError, ConfigError
from mixoff.quantization import Quantization, Scheme, quantization_from_dict
from mixoff.safe_json import quoted

FORMAT_VERSION = 1
QUANT_METHOD = "mixoff"
_WEIGHT_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def stored_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """Return the type of the weights that ``config.json`` names.

    Raises
    ------
    CheckpointError
        If it is none that a model's weights have.
    """
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in _WEIGHT_DTYPES:
        raise CheckpointError(f"config.json: dtype={name!r}: give {', '.join(_WEIGHT_DTYPES)}.")
    return _WEIGHT_DTYPES[name]


def quantization_settings(scheme: Scheme) -> dict[str, Any]:
    """Return what ``config.json`` holds under ``quantization_config``."""
    settings = {
        "quant_method": QUANT_METHOD,
        "format_version": FORMAT_VERSION,
        "attention": scheme.attention.to_dict(),
        "experts": scheme.experts.to_dict(),
    }
    if scheme.layer_experts:
        layers = sorted(scheme.layer_experts.items())
        settings["layer_experts"] = {str(layer): experts.to_dict() for layer, experts in layers}
    return settings


def scheme_from_settings(settings: Mapping[str, Any]) -> Scheme:
    """Return the scheme that `quantization_settings` wrote.

    Raises
    ------
    ConfigError
        If the format's version or a setting is unknown.
    """
    version = settings.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ConfigError(
            f"format version {quoted(version)}: this mixoff reads version {FORMAT_VERSION}; "
            "upgrade mixoff or convert the checkpoint again."
        )
    if missing := {"attention", "experts"} - settings.keys():
        raise ConfigError(f"quantization_config lacks {', '.join(sorted(missing))}.")
    return Scheme(
        attention=quantization_from_dict(settings["attention"]),
        experts=quantization_from_dict(settings["experts"]),
        layer_experts=_layer_experts(settings.get("layer_experts", {})),
    )


def _layer_experts(settings: object) -> dict[int, Quantization]:
    if not isinstance(settings, dict) or not all(map(_is_layer, settings)):
        raise ConfigError(f"layer_experts={quoted(settings)}: give a layer's number and a method.")
    return {int(layer): quantization_from_dict(experts) for layer, experts in settings.items()}


def _is_layer(number: str) -> bool:
    return number.isascii() and number.isdigit() and number == str(int(number[:9]))
