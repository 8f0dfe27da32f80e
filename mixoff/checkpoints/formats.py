"""The formats of checkpoints that mixoff runs, and what all of them have. Reads no tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from mixoff.checkpoints.folder import CheckpointFolder
from mixoff.checkpoints.mixoff_format import MixoffCheckpoint, NonExpertTensor
from mixoff.checkpoints.mixtral_offloading import MixtralOffloadingCheckpoint, is_mixtral_offloading
from mixoff.checkpoints.quantization_config import QUANT_METHOD
from mixoff.families import Architecture
from mixoff.quantization import Scheme, Shape
from mixoff.tiers.record import RecordLayout, RecordLocation


class PlannedCheckpoint(Protocol):
    """What a plan needs to know of a checkpoint, which need not exist yet."""

    @property
    def path(self) -> Path:
        """The folder, or what errors call it."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What its ``config.json`` holds."""

    @property
    def architecture(self) -> Architecture:
        """The model's sizes and tensors."""

    @property
    def format(self) -> str:
        """The name of its format."""

    @property
    def scheme(self) -> Scheme:
        """How attention and experts are stored."""

    @property
    def num_layers(self) -> int:
        """Layers of the model."""

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""

    @property
    def experts_nbytes(self) -> int:
        """Bytes of all experts' records on disk."""

    @property
    def non_expert(self) -> Mapping[str, NonExpertTensor]:
        """The tensors that are no experts, under the names that the model has for them."""

    def expert_layouts(self) -> list[list[RecordLayout]]:
        """Return where the tensors of each record lie in it, ``[layer][expert]``."""


class RunnableCheckpoint(PlannedCheckpoint, Protocol):
    """An opened checkpoint, from which a model can be built."""

    def expert_locations(self) -> list[list[RecordLocation]]:
        """Return where each layer's records lie on disk, ``[layer][expert]``."""

    def attention_layout(self, name: str, shape: Shape) -> RecordLayout:
        """Return where the parts of an attention matrix lie in the record of this name."""

    def non_expert_state(self) -> Mapping[str, Tensor] | None:
        """Return the non-expert tensors; None if transformers can read them from the folder."""

    def verify(self) -> None:
        """Check all that is no expert, or raise CheckpointError."""


def open_checkpoint(path: str | Path) -> RunnableCheckpoint:
    """Open a folder that mixoff wrote, or one in mixtral-offloading's layout.

    Raises
    ------
    CheckpointError
        If it is missing, of another format, or its files don't fit together.
    """
    folder = CheckpointFolder.open(path)
    if _is_mixtral_offloading(folder):
        return MixtralOffloadingCheckpoint.open(folder)
    return MixoffCheckpoint.open(folder)


def _is_mixtral_offloading(folder: CheckpointFolder) -> bool:
    settings = folder.config.get("quantization_config")
    if isinstance(settings, dict) and settings.get("quant_method") == QUANT_METHOD:
        return False
    if any(folder.path.glob("model-layer*-expert*.safetensors")):  # even if the index is damaged
        return True
    return folder.index_path.is_file() and is_mixtral_offloading(folder.index.get("weight_map"))
