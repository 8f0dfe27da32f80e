"""A conversation in a file of readable JSON. Knows messages; nothing of models or ids.

``{"format": "mixoff-conversation", "version": 1, "system": null or a text,
"turns": [{"user": a text, "reply": a text}, ...]}``
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixoff.errors import CheckpointError, MixoffError
from mixoff.safe_json import read_json

_FORMAT, _VERSION = "mixoff-conversation", 1

Pair = tuple[str, str]  # a message and its reply


def write_conversation(path: Path, system: str | None, pairs: Sequence[Pair]) -> None:
    """Write a conversation to a file.

    Raises
    ------
    MixoffError
        If it can't be written.
    """
    turns = [{"user": user, "reply": reply} for user, reply in pairs]
    content = {"format": _FORMAT, "version": _VERSION, "system": system, "turns": turns}
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")  # all ASCII
    except OSError as error:
        raise MixoffError(f"{path}: can't be written ({error.strerror}).") from error


def read_conversation(path: Path) -> tuple[str | None, list[Pair]]:
    """Return a saved conversation's system prompt and its turns.

    Raises
    ------
    CheckpointError
        If the file is missing, or holds no conversation.
    """
    content = read_json(path)
    if content.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a conversation saved by mixoff.")
    if content.get("version") != _VERSION:
        raise CheckpointError(
            f"{path}: a conversation of version {content.get('version')!r}; this mixoff reads "
            f"version {_VERSION}."
        )
    system, turns = content.get("system"), content.get("turns")
    well_formed = (system is None or isinstance(system, str)) and isinstance(turns, list)
    if not (well_formed and all(map(_is_turn, turns or []))):
        raise CheckpointError(f"{path}: damaged: a conversation has a system prompt and turns.")
    return system, [(turn["user"], turn["reply"]) for turn in turns or []]


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(k), str) for k in ("user", "reply"))
