"""Compute, waits and copies are spans that fit, and Chrome's trace events."""

import json
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixoff.trace import Trace
from mixoff.trace.timeline import COMPUTE, EXPERTS, NON_EXPERT, WAIT, Span, spans
from support.recordings import MS, HandPlayed

EXPERT_COUNT, LAYERS = 5, 3
needed = st.lists(st.integers(0, EXPERT_COUNT - 1), max_size=EXPERT_COUNT)
steps = st.lists(st.tuples(st.lists(needed, min_size=LAYERS, max_size=LAYERS)), max_size=6)


def reply(steps: list, *, non_expert: int = MS // 2, guesses: bool = True) -> Trace:
    """Return the trace of a reply: compute, waits, non-expert parts, guessed copies beside."""
    played = HandPlayed(layers=LAYERS, experts=EXPERT_COUNT, slots=2).record()
    for (layers,) in steps:
        for layer, experts in enumerate(layers):
            if guesses:
                played.copied(layer, 1, "host", played.now + MS // 3, 2 * MS, guess=True)
            played.demand(layer, experts, wait_ns=3 * MS, compute_ns=MS, tier="host")
            played.now += non_expert
    return played.trace(model="made up")


def in_lanes(every: list[Span]) -> dict[str, list[Span]]:
    return {lane: [*own] for lane, own in groupby(every, key=lambda span: span.lane)}


@given(steps)
def test_spans_of_a_lane_come_in_order_and_never_overlap(steps):
    every = spans(reply(steps).events)
    lanes = in_lanes(every)
    assert len({span.lane for span in every}) == len(lanes), "a lane's spans stand together"
    for own in lanes.values():
        assert all(first.end_ns <= second.start_ns for first, second in pairwise(own))


@given(steps)
def test_compute_and_waits_fill_a_reply(steps):
    trace = reply(steps)
    own = [span for span in spans(trace.events) if span.lane in (COMPUTE, WAIT)]
    if own:
        assert sum(span.duration_ns for span in own) == max(span.end_ns for span in own)
    waited = sum(span.duration_ns for span in own if span.lane == WAIT)
    assert waited / MS == trace.per_token()["wait_ms"].sum()


def test_compute_is_experts_around_the_waits_and_the_rest_between_demands():
    played = HandPlayed(layers=2, experts=4, slots=2).record()
    played.demand(0, [0, 3], wait_ns=5 * MS, compute_ns=MS)  # 3 hits
    played.now += 2 * MS
    played.demand(1, [2], wait_ns=5 * MS, compute_ns=MS)
    own = in_lanes(spans(played.trace().events))
    computed = [(span.label, span.start_ns // MS, span.end_ns // MS) for span in own[COMPUTE]]
    assert computed == [(EXPERTS, 0, 1), (EXPERTS, 6, 7), (NON_EXPERT, 7, 9), (EXPERTS, 9, 10)]
    assert [(s.label, s.start_ns // MS, s.end_ns // MS) for s in own[WAIT]] == [("expert 0", 1, 6)]


def test_nothing_is_computed_between_a_reply_and_the_next_prompt():
    played = HandPlayed(layers=1, experts=4, slots=4).record()
    for tokens in (3, 1, 3, 1):
        played.demand(0, [0], tokens=tokens, compute_ns=MS)
        played.now += 10 * MS
    non_expert = [span for span in spans(played.trace().events) if span.label == NON_EXPERT]
    assert [span.start_ns // MS for span in non_expert] == [1, 23]


def test_copies_between_the_same_tiers_at_the_same_time_have_lanes_of_their_own():
    played = HandPlayed(layers=1, experts=4, slots=4).record()
    for start in (0, 2, 4, 11):
        played.copied(0, start % 4, "disk", start * MS, 5 * MS)
    lanes = in_lanes(spans(played.trace().events))
    starts = {lane: [span.start_ns // MS for span in own] for lane, own in lanes.items()}
    assert starts == {"disk to device": [0, 11], "disk to device 2": [2], "disk to device 3": [4]}


# ---- Chrome's format


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("chrome") / "a.json"
    reply([([[0, 1], [1, 2], [3, 4]],), ([[2], [3, 4], [0]],), ([[0], [0], [0]],)]).to_chrome(path)
    return json.loads(path.read_text())


def events_of(chrome: dict, phase: str) -> list[dict]:
    return [event for event in chrome["traceEvents"] if event["ph"] == phase]


def test_every_event_has_what_its_phase_demands(chrome):
    demanded = {"X": {"name", "cat", "ts", "dur"}, "i": {"name", "ts", "s"}, "M": {"name", "args"}}
    for event in chrome["traceEvents"]:
        assert demanded[event["ph"]] | {"pid", "tid"} <= {*event}
        for name in ("ts", "dur"):
            assert isinstance(event.get(name, 0), int | float)
            assert event.get(name, 0) >= 0
    assert chrome["displayTimeUnit"] in ("ms", "ns")


def test_every_lane_has_one_name_and_an_order(chrome):
    meant = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}
    for event in events_of(chrome, "M"):
        assert [*event["args"]] == [meant[event["name"]]]
    named = [e["tid"] for e in events_of(chrome, "M") if e["name"] == "thread_name"]
    ordered = [e["tid"] for e in events_of(chrome, "M") if e["name"] == "thread_sort_index"]
    used = {event["tid"] for phase in "Xi" for event in events_of(chrome, phase)}
    assert sorted({*named}) == sorted(named) == sorted(ordered)
    assert used <= {*named}
    assert {event["pid"] for event in chrome["traceEvents"]} == {1}


def test_complete_events_of_a_thread_do_not_overlap(chrome):
    by_thread = sorted(events_of(chrome, "X"), key=lambda e: (e["tid"], e["ts"]))
    for first, second in pairwise(by_thread):
        end = first["ts"] + first["dur"]
        assert first["tid"] != second["tid"] or end <= second["ts"] + 1e-6


def test_times_are_microseconds(chrome):
    waits = [event["dur"] for event in events_of(chrome, "X") if event["cat"] == "miss"]
    assert set(waits) == {3000.0}


def test_evictions_are_marks_in_their_lane(chrome):
    marks = events_of(chrome, "i")
    assert marks
    assert {mark["s"] for mark in marks} == {"t"}
    named = [event for event in events_of(chrome, "M") if event["name"] == "thread_name"]
    lanes = {event["tid"]: event["args"]["name"] for event in named}
    assert {lanes[mark["tid"]] for mark in marks} == {"evictions"}


def test_copies_say_what_they_moved(chrome):
    copies = [event["args"] for event in events_of(chrome, "X") if event["cat"] == "copy"]
    assert {True, False} == {copy["guess"] for copy in copies}
    assert all({"layer", "expert", "nbytes", "tier", "step", "phase"} <= {*c} for c in copies)
