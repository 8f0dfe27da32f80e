"""A trace's file: written and read. Knows the format; `schema.check` judges the numbers.

Format, version 1: one safetensors file (https://github.com/huggingface/safetensors), which any
language can read and which holds no code. Its tensors are columns of two tables:

* ``events.NAME`` [R], one row an event: the columns, their types and codes, and the order of rows
  are those of `mixoff.trace.schema`; a code is the place in KINDS, TIERS or OUTCOMES, and -1
  where a column doesn't apply;
* ``states.NAME`` [S] or [S, experts], one row for each state of a layer from which a replay begins
  anew: `mixoff.trace.schema.state_dtype`.

Its ``__metadata__`` holds ``format`` ("mixoff trace"), ``version`` ("1"), and ``provenance``: a
JSON object.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mixoff.errors import CheckpointError, TraceError
from mixoff.safe_json import MAX_NBYTES, describe_content, file_size, parse, truncated
from mixoff.trace.schema import EVENT, Rows, state_dtype

_FORMAT = "mixoff trace"
_VERSION = 1


class Content(NamedTuple):
    """What a file holds."""

    events: Rows
    states: Rows
    provenance: dict[str, Any]


def write(path: Path, content: Content) -> None:
    """Write a file.

    Raises
    ------
    TraceError
        If the provenance isn't plain JSON, or the file can't be written.
    """
    tables = {"events": content.events, "states": content.states}
    columns = {
        f"{table}.{name}": np.ascontiguousarray(rows[name])
        for table, rows in tables.items()
        for name in rows.dtype.names or ()
    }
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "provenance": _plain_json(content.provenance),
    }
    try:
        path.write_bytes(save(columns, metadata))
    except OSError as error:
        raise TraceError(f"{path}: can't be written ({error.strerror}).") from error


def _plain_json(provenance: dict[str, Any]) -> str:
    try:
        text = json.dumps(provenance, allow_nan=False)
        plain = json.loads(text) == provenance
    except (TypeError, ValueError):
        plain = False
    if not plain:
        raise TraceError(
            f"provenance={provenance!r}: give text, finite numbers, true, false, null, and lists "
            "and dicts of them with text as keys."
        )
    return text


def read(path: Path) -> Content:
    """Read a file.

    Raises
    ------
    TraceError
        If it is missing, damaged, no trace, or of a newer version.
    """
    _refuse_other_files(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            _refuse_other_formats(path, metadata)
            columns = {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
                if name.startswith(("events.", "states."))
            }
    except OSError as error:
        raise TraceError(f"{path}: can't be read ({error}): give a file of mixoff.") from error
    except SafetensorError as error:
        reason = truncated(str(error))
        raise TraceError(f"{path}: damaged or no trace ({reason}): record it again.") from error
    try:
        provenance = parse(metadata["provenance"].encode())
        num_experts = columns["states.resident"].shape[1]
        states = state_dtype(num_experts)
    except (KeyError, IndexError, ValueError) as error:
        reason = truncated(repr(error))
        raise TraceError(f"{path}: damaged ({reason}): record it again.") from error
    if not isinstance(provenance, dict):
        raise TraceError(f"{path}: damaged (its provenance is no object): record it again.")
    return Content(
        _table(path, columns, "events", EVENT),
        _table(path, columns, "states", states),
        provenance,
    )


def _refuse_other_files(path: Path) -> None:
    """Refuse files on which the safetensors library would wait, or which take it long to read."""
    try:
        size = file_size(path)
        with path.open("rb") as file:
            beginning = file.read(40)
    except CheckpointError as error:
        raise TraceError(str(error)) from None
    except OSError as error:
        reason = error.strerror
        raise TraceError(f"{path}: can't be read ({reason}): give a file of mixoff.") from error
    length = int.from_bytes(beginning[:8], "little")
    if not 2 <= length <= min(MAX_NBYTES, size - 8):
        reason = describe_content(beginning) or f"a header of {length} bytes in a file of {size}"
        raise TraceError(f"{path}: damaged or no trace ({reason}): record it again.")


def _refuse_other_formats(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != _FORMAT:
        raise TraceError(f"{path}: not a trace: give a file that trace.save or mixoff record made.")
    version = metadata.get("version", "")
    if version != str(_VERSION):
        raise TraceError(
            f"{path}: format version {version}, and this mixoff reads {_VERSION}: update mixoff, "
            "or record it again."
        )


def _table(
    path: Path, columns: dict[str, NDArray[Any]], table: str, dtype: "np.dtype[np.void]"
) -> Rows:
    shapes = {name: columns[name].shape for name in columns if name.startswith(f"{table}.")}
    lengths = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(lengths) > 1:
        raise TraceError(f"{path}: damaged (columns of {table} differ in length): record it again.")
    length = lengths.pop() if lengths else 0
    for name in dtype.names or ():  # before memory is taken for rows that the file may not have
        column, wanted = columns.get(f"{table}.{name}"), dtype[name]
        expected = ((length, *wanted.shape), wanted.base)
        if column is None or (column.shape, column.dtype) != expected:
            raise TraceError(
                f"{path}: damaged (column {table}.{name} is missing or of another type or shape): "
                "record it again."
            )
    rows = np.zeros(length, dtype)
    for name in dtype.names or ():
        rows[name] = columns[f"{table}.{name}"]
    return rows
