"""The options of a quantization scheme, and the scheme that they give. Knows no files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixoff.cli.options import Bits
from mixoff.errors import ConfigError

if TYPE_CHECKING:
    from mixoff.quantization import Quantization, Scheme

_GROUPS = "Weights that share a scale"
AttentionBits = Annotated[
    Bits | None, typer.Option("--attention", help="Bits of attention weights.", show_default="4")
]
ExpertsBits = Annotated[
    Bits | None, typer.Option("--experts", help="Bits of experts' weights.", show_default="2")
]
LayerExperts = Annotated[
    str | None,
    typer.Option(
        help="Bits of experts' weights of single layers, such as 0:4,31:none.",
        show_default=False,
    ),
]
GroupSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"{_GROUPS}, of attention and experts both.",
        show_default="64; experts 16 at 2 bits",
    ),
]
AttentionGroupSize = Annotated[
    int | None, typer.Option(min=1, help=f"{_GROUPS}, of attention.", show_default="64")
]
ExpertsGroupSize = Annotated[
    int | None,
    typer.Option(min=1, help=f"{_GROUPS}, of experts.", show_default="16 at 2 bits, else 64"),
]


@dataclass(frozen=True)
class SchemeOptions:
    """The given options of a scheme, None for those left out; true if any was given."""

    attention: Bits | None
    experts: Bits | None
    layer_experts: str | None
    group_size: int | None
    attention_group_size: int | None
    experts_group_size: int | None

    def __bool__(self) -> bool:
        return self != SchemeOptions(None, None, None, None, None, None)

    def scheme(self, config: Mapping[str, Any]) -> "Scheme":
        """Return the scheme for a model with these settings; "none" keeps the type in them."""
        from mixoff.checkpoints.quantization_config import stored_dtype
        from mixoff.quantization import Scheme

        stored = str(stored_dtype(config)).removeprefix("torch.")
        groups = self.attention_group_size or self.group_size or 64
        layers = _layers(self.layer_experts)
        return Scheme(
            attention=_quantization(self.attention or Bits.four, groups, 16, stored),
            experts=self._experts(self.experts or Bits.two, stored),
            layer_experts={layer: self._experts(bits, stored) for layer, bits in layers.items()},
        )

    def _experts(self, bits: Bits, stored: str) -> "Quantization":
        is_two = bits is Bits.two
        groups = self.experts_group_size or self.group_size or (16 if is_two else 64)
        return _quantization(bits, groups, 8 if is_two else 16, stored)


def _quantization(bits: Bits, group_size: int, scale_nbits: int, stored: str) -> "Quantization":
    from mixoff.quantization import HQQ, Unquantized

    if bits is Bits.none:
        return Unquantized(stored)
    return HQQ(nbits=int(bits.value), group_size=group_size, scale_nbits=scale_nbits)


def _layers(text: str | None) -> dict[int, Bits]:
    """Return the bits of each layer from a text such as "0:4,31:none"."""
    known, layers = {bits.value: bits for bits in Bits}, dict[int, Bits]()
    for item in (text or "").split(",") if text is not None else []:
        match = re.fullmatch(r"\s*([0-9]{1,6}):([a-z0-9]+)\s*", item)
        if match is None or match[2] not in known or int(match[1]) in layers:
            raise ConfigError(
                f"layer_experts={text!r}: give each layer once with its bits "
                f"({', '.join(known)}), as 0:4,31:none."
            )
        layers[int(match[1])] = known[match[2]]
    return layers
