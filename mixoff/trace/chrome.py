"""A trace in Chrome's trace-event format, which Perfetto and chrome://tracing draw.

The format: "Trace Event Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mixoff.errors import TraceError
from mixoff.trace.frames import PHASES, phase_of
from mixoff.trace.schema import EVICTION, KINDS, NOTHING, TIERS, Rows
from mixoff.trace.timeline import Span, spans

_PID = 1
_NS_PER_US = 1000
_EVICTIONS = "evictions"


def write(path: Path, events: Rows, provenance: dict[str, Any]) -> None:
    """Write a trace for a viewer.

    Raises
    ------
    TraceError
        If the file can't be written.
    """
    lanes = spans(events)
    names = [*dict.fromkeys(span.lane for span in lanes), _EVICTIONS]
    lane_of = {name: number for number, name in enumerate(names, start=1)}  # a thread's id
    content = {
        "traceEvents": [
            *_names(names, str(provenance.get("model", "mixoff"))),
            *(_complete(span, lane_of[span.lane], events) for span in lanes),
            *_evictions(events, lane_of[_EVICTIONS]),
        ],
        "displayTimeUnit": "ms",
        "otherData": {name: str(value) for name, value in provenance.items()},
    }
    try:
        path.write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        raise TraceError(f"{path}: can't be written ({error.strerror}).") from error


def _names(lanes: list[str], model: str) -> list[dict[str, Any]]:
    def named(what: str, lane: int, **arguments: Any) -> dict[str, Any]:
        return {"ph": "M", "name": what, "pid": _PID, "tid": lane, "args": arguments}

    return [
        named("process_name", 0, name=model),
        *(named("thread_name", n, name=lane) for n, lane in enumerate(lanes, start=1)),
        *(named("thread_sort_index", n, sort_index=n) for n in range(1, len(lanes) + 1)),
    ]


def _complete(span: Span, lane: int, events: Rows) -> dict[str, Any]:
    kind = span.label if span.row == NOTHING else KINDS[events[span.row]["kind"]]
    return {
        "ph": "X",
        "name": span.label,
        "cat": kind,
        "pid": _PID,
        "tid": lane,
        "ts": span.start_ns / _NS_PER_US,
        "dur": span.duration_ns / _NS_PER_US,
        "args": {} if span.row == NOTHING else _arguments(events[span.row]),
    }


def _arguments(event: Any) -> dict[str, Any]:
    numbers = {name: int(event[name]) for name in ("step", "layer", "expert", "nbytes")}
    known = {name: number for name, number in numbers.items() if number != NOTHING}
    tier = {} if event["tier"] == NOTHING else {"tier": TIERS[event["tier"]]}
    return {"phase": PHASES[phase_of(event)], "guess": bool(event["guess"])} | tier | known


def _evictions(events: Rows, lane: int) -> list[dict[str, Any]]:
    return [
        {
            "ph": "i",
            "s": "t",  # of a thread: the mark is as high as its lane
            "name": f"expert {event['expert']}",
            "cat": "eviction",
            "pid": _PID,
            "tid": lane,
            "ts": int(event["start_ns"]) / _NS_PER_US,
            "args": _arguments(event),
        }
        for event in events[np.flatnonzero(events["kind"] == EVICTION)]
    ]
