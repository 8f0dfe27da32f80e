"""JSON from strangers, read within bounds. Knows text and sizes; nothing of what it says.

What is read here takes less than a second and less than 256 MiB, whatever it holds.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from mixoff.errors import CheckpointError

# Bytes of a document. A header, an index or settings of the largest Mixtral take a quarter of it.
MAX_NBYTES = 4 << 20
_MAX_DEPTH = 32  # objects and lists inside each other
_MAX_NESTED = 1 << 15  # objects and lists in all: three for each tensor of a header
_MAX_DIGITS = 20  # of a whole number: 2**64 has as many
_MAX_SHOWN = 120  # characters of a value in a message

_KINDS = {
    b"version https://git-lfs": "a pointer of git-lfs, not the file: run `git lfs pull` there",
    b"PK\x03\x04": "a zip archive, perhaps a pickle of torch: mixoff reads safetensors alone",
    b"\x80": "a pickle: mixoff reads safetensors alone",
    b"GGUF": "a GGUF file: mixoff reads safetensors alone",
    b"<": "a page of HTML or XML, perhaps an error of a server: fetch the file again",
}


def parse(raw: bytes) -> Any:
    """Return what a JSON document holds.

    Raises
    ------
    ValueError
        If it is no JSON in UTF-8, or has a key twice or a number or nesting that nobody needs.
    """
    if len(raw) > MAX_NBYTES:
        raise ValueError(f"{len(raw)} bytes, and mixoff reads {MAX_NBYTES} at most")
    if (nested := raw.count(b"[") + raw.count(b"{")) > _MAX_NESTED:
        raise ValueError(f"{nested} lists and objects, and mixoff reads {_MAX_NESTED} at most")
    try:
        content = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_whole_number,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except RecursionError:
        raise ValueError("nested too deep") from None
    _check_depth(content)
    if b"\\ud" in raw or b"\\uD" in raw:  # half a character is no text that could be shown
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises
    ------
    CheckpointError
        If the file is missing, too large, or holds no JSON object.
    """
    try:
        size = file_size(path)
        if size > MAX_NBYTES:
            raise CheckpointError(
                f"{path}: {size} bytes are too many for a settings file: "
                f"mixoff reads {MAX_NBYTES} at most."
            )
        with path.open("rb") as file:
            raw = file.read(MAX_NBYTES + 1)
        content = parse(raw)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}).") from error
    except ValueError as error:
        reason = describe_content(raw) or truncated(str(error))
        raise CheckpointError(f"{path}: no JSON ({reason}).") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no JSON object.")
    return content


def file_size(path: Path) -> int:
    """Return a file's bytes; a link counts as what it leads to, as the hub's cache has them.

    Raises
    ------
    CheckpointError
        If it is a folder, a pipe or a device, which might be waited for without end.
    OSError
        If it isn't there.
    """
    try:
        size = path.stat().st_size
        if path.is_file():
            return size
    except ValueError as error:  # a null byte, or half a character
        raise CheckpointError(f"{str(path)!r}: no name that a file can have ({error}).") from None
    raise CheckpointError(f"{path}: is no file.")


def describe_content(beginning: bytes) -> str | None:
    """Return what a file is instead, as its first bytes tell; None if unknown."""
    if not beginning:
        return "it is empty: fetch it again"
    found = (kind for magic, kind in _KINDS.items() if beginning.lstrip().startswith(magic))
    return next(found, None)


def quoted(value: object) -> str:
    """Return a value of a document as a message has it: as Python writes it, shortened."""
    if isinstance(value, list | dict) and len(value) > _MAX_SHOWN:
        return f"a {type(value).__name__} of {len(value)} values"
    return truncated(repr(value))


def truncated(text: str) -> str:
    """Return a text, its middle left out where it is long."""
    if len(text) <= _MAX_SHOWN:
        return text
    half = _MAX_SHOWN // 2
    return f"{text[:half]}... ({len(text)} characters) ...{text[-half:]}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{quoted(twice)} stands there twice")
    return content


def _whole_number(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{truncated(text)} is no number")
    return number


def _check_depth(content: Any) -> None:
    level = _inside([content])
    for _ in range(_MAX_DEPTH):
        level = [child for parent in level for child in _inside(parent)]
        if not level:
            return
    raise ValueError("nested too deep")


def _inside(parent: Any) -> list[Any]:
    """Return the objects and lists that stand in another."""
    children = parent.values() if isinstance(parent, dict) else parent
    return [child for child in children if isinstance(child, list | dict)]
