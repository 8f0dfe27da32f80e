"""Sizes in bytes as people write and read them ("10GiB"), and the size of a transfer's step."""

import re
from decimal import Decimal

from mixoff.errors import ConfigError

AUTO = "auto"  # a budget: the free memory, less some headroom
CHUNK = 8 << 20  # bytes that a transfer moves in one step: a demand waits for no more of a guess

_UNITS: dict[str, int] = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}


def parse_nbytes(size: int | str) -> int:
    """Return a size in bytes from an int or a text: "10GiB", "500 MB", "4096".

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
    """Return a number of bytes as text, in binary units: "1.50 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"


def parse_budget(size: int | str) -> int | None:
    """Return a size in bytes as `parse_nbytes` does, or None for "auto".

    Raises
    ------
    ConfigError
        If it is neither.
    """
    return None if size == AUTO else parse_nbytes(size)
