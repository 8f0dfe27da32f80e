"""JSON from untrusted files, read within limits. Knows text and sizes; nothing of its meaning.

Reading takes less than a second and less than 256 MiB, whatever the file holds.
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
_MAX_DIGITS = 20  # of an integer: 2**64 has as many
_MAX_QUOTED = 120  # characters of a value in a message

_KINDS = {
    b"version https://git-lfs": "a git-lfs pointer, not the file: run `git lfs pull` there",
    b"PK\x03\x04": "a zip archive, perhaps a pickle of torch: mixoff reads safetensors only",
    b"\x80": "a pickle: mixoff reads safetensors only",
    b"GGUF": "a GGUF file: mixoff reads safetensors only",
    b"<": "an HTML or XML page, perhaps a server's error: fetch the file again",
}


def parse(raw: bytes) -> Any:
    """Return the value of a JSON document.

    Raises
    ------
    ValueError
        If it isn't JSON in UTF-8, repeats a key, or exceeds a limit of size, digits or nesting.
    """
    if len(raw) > MAX_NBYTES:
        raise ValueError(f"{len(raw)} bytes, and mixoff reads {MAX_NBYTES} at most")
    if (nested := raw.count(b"[") + raw.count(b"{")) > _MAX_NESTED:
        raise ValueError(f"{nested} lists and objects, and mixoff reads {_MAX_NESTED} at most")
    try:
        content = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except RecursionError:
        raise ValueError("nested too deep") from None
    _check_depth(content)
    if b"\\ud" in raw or b"\\uD" in raw:  # refuses a lone surrogate, which no output can encode
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

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
    """Return a file's size in bytes; links are followed, since the hub's cache consists of them.

    Raises
    ------
    CheckpointError
        If it is a folder, a pipe or a device, whose reading might never end.
    OSError
        If it doesn't exist.
    """
    try:
        size = path.stat().st_size
        if path.is_file():
            return size
    except ValueError as error:  # a null byte, or a lone surrogate
        raise CheckpointError(f"{str(path)!r}: not a valid file name ({error}).") from None
    raise CheckpointError(f"{path}: is no file.")


def describe_content(beginning: bytes) -> str | None:
    """Return the kind of an unreadable file, from its first bytes; None if it is unknown."""
    if not beginning:
        return "it is empty: fetch it again"
    kinds = (kind for magic, kind in _KINDS.items() if beginning.lstrip().startswith(magic))
    return next(kinds, None)


def quoted(value: object) -> str:
    """Return a value for a message: its `repr`, truncated."""
    if isinstance(value, list | dict) and len(value) > _MAX_QUOTED:
        return f"a {type(value).__name__} of {len(value)} values"
    return truncated(repr(value))


def truncated(text: str) -> str:
    """Return a text without its middle if it is long."""
    if len(text) <= _MAX_QUOTED:
        return text
    half = _MAX_QUOTED // 2
    return f"{text[:half]}... ({len(text)} characters) ...{text[-half:]}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        ((repeated, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{quoted(repeated)} occurs twice")
    return content


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{truncated(text)} isn't a finite number")
    return number


def _check_depth(content: Any) -> None:
    level = _inside([content])
    for _ in range(_MAX_DEPTH):
        level = [child for parent in level for child in _inside(parent)]
        if not level:
            return
    raise ValueError("nested too deep")


def _inside(parent: Any) -> list[Any]:
    """Return the objects and lists that are values of another."""
    children = parent.values() if isinstance(parent, dict) else parent
    return [child for child in children if isinstance(child, list | dict)]
