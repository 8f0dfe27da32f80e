"""Which methods there are, and which of them a checkpoint has for what."""

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
    """Return the scheme that `Quantization.to_dict` wrote.

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
        told = truncated(repr(options))
        raise ConfigError(
            f"settings {told} of quantization method {name!r}: {truncated(str(error))}."
        ) from None


_FOUR_BITS = HQQ(nbits=4, group_size=64)
_TWO_BITS = HQQ(nbits=2, group_size=16, scale_nbits=8)


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint is quantized: attention and experts each have their own way.

    Parameters
    ----------
    attention
        How attention's matrices are stored.
    experts
        How experts' matrices are stored, in all layers that `layer_experts` doesn't name.
    layer_experts
        How experts' matrices of single layers are stored, by the layer's number.
    """

    attention: Quantization = _FOUR_BITS
    experts: Quantization = _TWO_BITS
    layer_experts: Mapping[int, Quantization] = field(default_factory=dict, hash=False)

    def experts_of(self, layer: int) -> Quantization:
        """Return how the experts' matrices of a layer are stored."""
        return self.layer_experts.get(layer, self.experts)
