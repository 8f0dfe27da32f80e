"""What a time line of a trace shows, as numbers. Knows lanes; draws nothing."""

from typing import TYPE_CHECKING

from mixoff.errors import TraceError
from mixoff.trace import Trace
from mixoff.trace.lanes import BESIDE, EXPERTS, TRUNK, WAIT, Span, spans
from mixoff.trace.tables import DEMAND, NOTHING, Rows

if TYPE_CHECKING:
    import pandas as pd

DEMANDED, GUESSED = "copy, demanded", "copy, guessed"
MARKS = (TRUNK, EXPERTS, WAIT, DEMANDED, GUESSED)
_NS_PER_MS = 1e6


def timeline(trace: Trace, *, first_step: int = 0, steps: int = 4) -> "pd.DataFrame":
    """Return what was computed, waited for and copied in some steps, a row a stretch of time.

    Columns: lane, mark (one of MARKS), expert (missing if it isn't of one), start_ms since the
    first of these steps began, duration_ms.

    Raises
    ------
    TraceError
        If the trace has no such steps.
    """
    import pandas as pd

    events = _chosen(trace, first_step, steps)
    zero = int(events["start_ns"][events["kind"] == DEMAND][0])
    rows = [
        (
            span.lane,
            _mark(span, events),
            events[span.row]["expert"] if span.row != NOTHING else NOTHING,
            (span.start_ns - zero) / _NS_PER_MS,
            span.duration_ns / _NS_PER_MS,
        )
        for span in spans(events)
    ]
    frame = pd.DataFrame(rows, columns=["lane", "mark", "expert", "start_ms", "duration_ms"])
    expert = frame["expert"].astype("Int64")
    return frame.assign(expert=expert.mask(expert == NOTHING))


def _chosen(trace: Trace, first_step: int, steps: int) -> Rows:
    if steps < 1 or not 0 <= first_step < trace.num_steps:
        raise TraceError(
            f"first_step={first_step}, steps={steps}: the trace has {trace.num_steps} steps, "
            "from 0: give one of them, and 1 step or more."
        )
    step = trace.events["step"]
    chosen: Rows = trace.events[(step >= first_step) & (step < first_step + steps)]
    return chosen


def _mark(span: Span, events: Rows) -> str:
    if span.label in MARKS or span.row == NOTHING:
        return span.label
    if span.lane.startswith(WAIT):
        return WAIT
    if span.lane.startswith(BESIDE):
        return EXPERTS
    return GUESSED if events[span.row]["guess"] else DEMANDED
