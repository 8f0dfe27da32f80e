"""Which kind of checkpoint a folder holds. Knows the kinds; nothing of what is in them."""

from pathlib import Path

from mixoff.checkpoints.mixoff_format import INDEX_NAME, Checkpoint
from mixoff.checkpoints.mixtral_offloading import ReleasedCheckpoint, is_released_layout
from mixoff.checkpoints.quantization_config import QUANT_METHOD
from mixoff.safe_json import read_json

AnyCheckpoint = Checkpoint | ReleasedCheckpoint


def open_checkpoint(path: str | Path) -> AnyCheckpoint:
    """Open a folder that mixoff wrote, or one in the layout that mixtral-offloading released.

    Raises
    ------
    CheckpointError
        If it is missing, of another format, or its files don't fit together.
    """
    path = Path(path)
    return ReleasedCheckpoint.open(path) if _is_released(path) else Checkpoint.open(path)


def _is_released(path: Path) -> bool:
    if not (path / "config.json").is_file():
        return False
    settings = read_json(path / "config.json").get("quantization_config")
    if isinstance(settings, dict) and settings.get("quant_method") == QUANT_METHOD:
        return False
    if any(path.glob("model-layer*-expert*.safetensors")):  # whatever became of the index
        return True
    index = path / INDEX_NAME
    return index.is_file() and is_released_layout(read_json(index).get("weight_map"))
