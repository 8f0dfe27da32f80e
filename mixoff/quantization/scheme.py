"""The table of methods, and the scheme that says how attention and experts are stored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mixoff.errors import ConfigError
from mixoff.quantization.base import Quantization
from mixoff.quantization.hqq import HQQ
from mixoff.quantization.hqq_axis0 import HQQAxis0
from mixoff.quantization.none import Unquantized
from mixoff.safe_json import truncated

METHODS: dict[str, type[Quantization]] = {
    method.method: method for method in (HQQ, HQQAxis0, Unquantized)
}


def quantization_from_dict(settings: Mapping[str, Any]) -> Quantization:
    """Return the quantization with the settings that `Quantization.to_dict` wrote.

    Raises
    ------
    ConfigError
        If the method or one of its settings is unknown.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"quantization {truncated(repr(settings))}: give a method and its settings."
        )
    options = dict(settings)
    name = options.pop("method", None)
    if name not in tuple(METHODS):
        raise ConfigError(
            f"quantization method {truncated(repr(name))}: this mixoff knows {', '.join(METHODS)}."
        )
    try:
        return METHODS[name](**options)
    except TypeError as error:
        raise ConfigError(
            f"settings {truncated(repr(options))} of quantization method {name!r}: "
            f"{truncated(str(error))}."
        ) from None


_FOUR_BITS = HQQ(nbits=4, group_size=64)
_TWO_BITS = HQQ(nbits=2, group_size=16, scale_nbits=8)


@dataclass(frozen=True)
class Scheme:
    """The quantization of a checkpoint: one of attention, and one of experts in each layer.

    Parameters
    ----------
    attention
        The quantization of attention's matrices.
    experts
        The quantization of experts' matrices, in all layers that `layer_experts` doesn't name.
    layer_experts
        The quantization of experts' matrices in single layers, by the layer's number.
    """

    attention: Quantization = _FOUR_BITS
    experts: Quantization = _TWO_BITS
    layer_experts: Mapping[int, Quantization] = field(default_factory=dict, hash=False)

    def experts_of(self, layer: int) -> Quantization:
        """Return the quantization of the experts' matrices in a layer."""
        return self.layer_experts.get(layer, self.experts)
