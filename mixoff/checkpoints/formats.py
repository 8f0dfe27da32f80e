"""Which kind of checkpoint a folder holds. Knows the kinds; nothing of what is in them."""

from pathlib import Path

from mixoff.checkpoints.mixoff_format import INDEX_NAME, Checkpoint
from mixoff.checkpoints.mixtral_offloading import MixtralOffloadingCheckpoint, is_mixtral_offloading
from mixoff.checkpoints.quantization_config import QUANT_METHOD
from mixoff.safe_json import read_json

AnyCheckpoint = Checkpoint | MixtralOffloadingCheckpoint


def open_checkpoint(path: str | Path) -> AnyCheckpoint:
    """Open a folder that mixoff wrote, or one in the layout that mixtral-offloading released.

    Raises
    ------
    CheckpointError
        If it is missing, of another format, or its files don't fit together.
    """
    path = Path(path)
    return MixtralOffloadingCheckpoint.open(path) if _is_released(path) else Checkpoint.open(path)


def _is_released(path: Path) -> bool:
    if not (path / "config.json").is_file():
        return False
    settings = read_json(path / "config.json").get("quantization_config")
    if isinstance(settings, dict) and settings.get("quant_method") == QUANT_METHOD:
        return False
    if any(path.glob("model-layer*-expert*.safetensors")):  # whatever became of the index
        return True
    index = path / INDEX_NAME
    return index.is_file() and is_mixtral_offloading(read_json(index).get("weight_map"))
