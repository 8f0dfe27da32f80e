"""The families that mixoff reads, by the name that ``config.json`` has for them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mixoff.families.architecture import Architecture, check_settings, refusal
from mixoff.families.mixtral import Mixtral

FAMILIES: Mapping[str, Callable[[Mapping[str, Any], Path], Architecture]] = {"mixtral": Mixtral}


def architecture_of(config: Mapping[str, Any], source: Path) -> Architecture:
    """Return what a model is, by its settings, which are checked before they are used.

    Parameters
    ----------
    config
        What its ``config.json`` holds.
    source
        That file, for errors to name.

    Raises
    ------
    CheckpointError
        If its family is unknown, or a setting is none that the family has, or asks for code.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise refusal(source, "model_type", family, f"mixoff reads {', '.join(FAMILIES)} alone")
    check_settings(config, source)
    return FAMILIES[family](config, source)
