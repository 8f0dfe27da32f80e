"""The checkpoint that suits a machine. Knows Mixtral's sizes and plans; downloads nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import constants

from mixoff.config import OffloadConfig
from mixoff.errors import ConfigError
from mixoff.hub import cached_nbytes
from mixoff.known_models import MIXTRAL_OFFLOADING, demo_path
from mixoff.planning.free_memory import headroom
from mixoff.planning.hardware import Hardware
from mixoff.planning.outline import CheckpointEstimate
from mixoff.planning.plan import MemoryPlan, plan_memory
from mixoff.quantization import HQQAxis0, Scheme
from mixoff.units import AUTO, format_nbytes

# The settings in config.json of Mixtral-8x7B-Instruct-v0.1 that determine its sizes.
_MIXTRAL_8X7B: Mapping[str, Any] = MappingProxyType(
    {
        "model_type": "mixtral",
        "dtype": "float16",
        "num_hidden_layers": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
    }
)
# The scheme of the checkpoint that mixtral-offloading released (arXiv 2312.17238, section 3.3).
_RELEASED = Scheme(
    attention=HQQAxis0(4, group_size=64, scale_group_size=256),
    experts=HQQAxis0(2, group_size=16, scale_group_size=128),
)
_ALL_FREE = OffloadConfig(device_memory=AUTO, host_memory=AUTO, prefetch=2)


@dataclass(frozen=True)
class Recommendation:
    """A checkpoint to chat with, and the reason for it, which `print` shows.

    Parameters
    ----------
    name
        A folder or a name on the hub, as `mixoff.build_model` takes it.
    offload, device
        The settings to run it with.
    reason
        Why this checkpoint was chosen, in one or two sentences.
    """

    name: str
    offload: OffloadConfig
    device: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def recommend_checkpoint(hardware: Hardware) -> Recommendation:
    """Return Mixtral-8x7B where it fits the machine's GPU, memory and disk, else the demo model.

    Mixtral-8x7B is the checkpoint that mixtral-offloading released: attention in 4 bits, experts in
    2. Its sizes are known, so nothing is downloaded and the hub isn't contacted.

    Parameters
    ----------
    hardware
        The machine, as `mixoff.this_hardware` describes it.

    Raises
    ------
    MixoffError
        If the demo model is recommended and its files are missing.
    """
    try:
        reason = _summary(hardware, _refuse_or_plan(hardware))
        return Recommendation(MIXTRAL_OFFLOADING, _ALL_FREE, hardware.device, reason)
    except ConfigError as obstacle:
        reason = f"the demo model, since {obstacle}"
    offload = OffloadConfig(offload_per_layer=4, prefetch=2)
    return Recommendation(str(demo_path()), offload, "cpu", reason)


def _refuse_or_plan(hardware: Hardware) -> MemoryPlan:
    """Return the memory plan of Mixtral-8x7B on a machine, or raise ConfigError with the reason."""
    if hardware.gpu is None:
        raise ConfigError("torch finds no GPU here, and Mixtral-8x7B is recommended for one only.")
    estimate = CheckpointEstimate(Path("Mixtral-8x7B"), _MIXTRAL_8X7B, _RELEASED)
    try:
        plan = plan_memory(estimate, _ALL_FREE, device=hardware.device, free=hardware.free)
    except ConfigError as error:
        raise ConfigError(f"Mixtral-8x7B doesn't fit here: {error}") from None
    nbytes = estimate.experts_nbytes + sum(tensor.nbytes for tensor in estimate.non_expert.values())
    missing, free = nbytes - cached_nbytes(MIXTRAL_OFFLOADING), hardware.free_disk_nbytes
    if missing < nbytes // 100:  # the files are a little smaller: records in them aren't padded
        return plan
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("Mixtral-8x7B isn't in the hub's cache and HF_HUB_OFFLINE is set.")
    if missing > free - headroom(free):
        raise ConfigError(
            f"Mixtral-8x7B takes {format_nbytes(missing)} of disk, of which {format_nbytes(free)} "
            "are free and some must stay free."
        )
    return plan


def _summary(hardware: Hardware, plan: MemoryPlan) -> str:
    inside, on_host = plan.slots_per_layer, plan.experts_on_host
    outside = on_host + plan.experts_on_disk
    return (
        f"Mixtral-8x7B, since it fits: {inside} of a layer's 8 experts on the {hardware.gpu}, "
        f"{on_host} of the other {outside} in host memory, the rest on disk."
    )
