"""Settings of a run. Knows numbers and their rules; knows nothing of models, files or torch."""

import re
from dataclasses import dataclass
from decimal import Decimal

from mixoff.errors import ConfigError
from mixoff.policies import POLICIES, Policy

# What mixtral-offloading published, in a layout of its own; the command line's default.
RELEASED_CHECKPOINT = "lavawolfiee/Mixtral-8x7B-Instruct-v0.1-offloading-demo"

_UNITS: dict[str, int] = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}


def parse_nbytes(size: int | str) -> int:
    """Return a size in bytes from an int or from what a person writes: "10GiB", "500 MB", "4096".

    GiB are powers of 1024, GB powers of 1000.

    Raises
    ------
    ConfigError
        If the text is not a number followed by a unit, or is negative.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", str(size), re.IGNORECASE)
    unit = match and next((u for u in _UNITS if u.lower() == match[2].lower()), None)
    if match is None or unit is None:
        raise ConfigError(f"{size!r} is not a size: write bytes or a number and a unit, as 10GiB.")
    return int(Decimal(match[1]) * _UNITS[unit])


def format_nbytes(nbytes: float) -> str:
    """Return bytes as a person reads them, in binary units: "1.50 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"


@dataclass(frozen=True, kw_only=True)
class OffloadConfig:
    """How many experts stay on the device, who leaves first, and how much host memory may be used.

    Parameters
    ----------
    offload_per_layer
        How many of a layer's experts start outside the device, so that
        ``slots_per_layer = experts - offload_per_layer``. The experts with the
        highest numbers start inside.
    policy
        Which resident expert leaves first: a name in `mixoff.policies.POLICIES` or a `Policy`.
    host_memory
        Host memory for records that are not on the device: bytes, or a text such as ``"10GiB"``.
        The rest is read from disk on every miss.

    Raises
    ------
    ConfigError
        If a value can't be used.
    """

    offload_per_layer: int = 4
    policy: str | Policy = "lru"
    host_memory: int | str = 0

    def __post_init__(self) -> None:
        if not isinstance(self.offload_per_layer, int) or self.offload_per_layer < 0:
            raise ConfigError(
                f"offload_per_layer={self.offload_per_layer!r}: give a whole number from 0 "
                "(every expert on the device) up."
            )
        if not isinstance(self.policy, Policy) and self.policy not in tuple(POLICIES):
            raise ConfigError(
                f"policy={self.policy!r}: give one of {', '.join(POLICIES)}, or a Policy."
            )
        parse_nbytes(self.host_memory)

    def slots_per_layer(self, num_experts: int) -> int:
        """Return how many device slots a layer of `num_experts` experts gets.

        Raises
        ------
        ConfigError
            If no slot would be left.
        """
        if self.offload_per_layer >= num_experts:
            raise ConfigError(
                f"offload_per_layer={self.offload_per_layer}: a layer of this model has "
                f"{num_experts} experts and one must fit the device: give 0 to {num_experts - 1}."
            )
        return num_experts - self.offload_per_layer
