"""A checkpoint of which only settings are known. Knows sizes of tensors; no files."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mixoff.checkpoints.mixoff_format import NonExpertTensor, layer_layouts
from mixoff.checkpoints.quantization_config import stored_dtype
from mixoff.families import Architecture, architecture_of
from mixoff.quantization import Scheme, Shape
from mixoff.tiers.record import RecordLayout


@dataclass(frozen=True)
class CheckpointEstimate:
    """What a checkpoint would hold, by a model's settings and a scheme alone.

    Parameters
    ----------
    path
        What errors call it.
    config
        What its ``config.json`` holds; tensors that aren't quantized have the type named there.
    scheme
        How attention and experts would be stored.

    Raises
    ------
    CheckpointError
        If the settings are of no known family.
    ConfigError
        If the scheme doesn't suit the model's shapes.
    """

    path: Path
    config: Mapping[str, Any]
    scheme: Scheme

    format = "not there yet"

    def __post_init__(self) -> None:
        self._layer_layouts, self.non_expert  # noqa: B018 - what doesn't suit is refused here

    @cached_property
    def architecture(self) -> Architecture:
        """The model's sizes and tensors."""
        return architecture_of(self.config, self.path / "config.json")

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self.architecture.num_layers

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        return self.architecture.num_experts

    def expert_layouts(self) -> list[list[RecordLayout]]:
        """Return where the tensors of each record would lie in it, ``[layer][expert]``."""
        return [[layout] * self.num_experts for layout in self._layer_layouts]

    @property
    def experts_nbytes(self) -> int:
        """Bytes of all experts' records on disk, each whole pages."""
        return self.num_experts * sum(layout.stride for layout in self._layer_layouts)

    @cached_property
    def non_expert(self) -> dict[str, NonExpertTensor]:
        """The tensors that are no experts, under the names that the model has for them."""
        return {
            name: self._packed(shape)
            if self.architecture.is_packed(name)
            else NonExpertTensor(stored_dtype(self.config), shape)
            for name, shape in self.architecture.non_expert_shapes()
        }

    def _packed(self, shape: Shape) -> NonExpertTensor:
        layout = RecordLayout(self.scheme.attention, (("weight", shape),))
        return NonExpertTensor(torch.uint8, (layout.nbytes,))

    @cached_property
    def _layer_layouts(self) -> list[RecordLayout]:
        return layer_layouts(self.scheme, self.architecture)
