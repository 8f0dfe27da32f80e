"""A trace has all events, is the same after saving, and sums up to what happened."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import mixoff
from mixoff.errors import ConfigError, TraceError
from mixoff.trace import Recorder, Trace
from mixoff.trace.events import Copy, Demand, Guess, Missed
from support.recordings import MS, NBYTES, HandPlayed

EXPERTS, LAYERS = 5, 3
FACTS = {"num_experts": EXPERTS, "num_layers": LAYERS, "record_nbytes": [7] * LAYERS}
needed = st.lists(st.integers(0, EXPERTS - 1), max_size=EXPERTS)
forwards = st.lists(st.tuples(st.integers(0, LAYERS - 1), needed), max_size=20)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # what an UTF-8 file can hold
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def demanded(layer: int, *, start: int = 0, tokens: int = 1, **columns: Any) -> Demand:
    """Return a demand, by default of no experts."""
    usual = {"hits": (), "misses": (), "arrivals": (), "evictions": (), "complete": True}
    return Demand(layer, tokens, start, start + 10, **usual | columns)


def finished(*demands: Demand, copies: Any = (), guesses: Any = ()) -> Trace:
    recorder = Recorder(clock=lambda: 0)
    for demand in demands:
        recorder.demand(demand)
    for copy in copies:
        recorder.copy(copy)
    for guess in guesses:
        recorder.guess(guess)
    return recorder.finish(provenance=FACTS | {"policy": "lru"})


def rows(trace: Trace, kind: str, *columns: str) -> list[Any]:
    frame = trace.to_frame()
    return frame[frame["kind"] == kind][list(columns)].values.tolist()


def chat() -> HandPlayed:
    """Return a prompt of four tokens and three more, of which the second is slow; twice."""
    played = HandPlayed(layers=2, experts=4, slots=2).record()
    for _ in range(2):
        for tokens, experts, wait in (
            (4, (0, 1, 2), 2),
            (1, (1, 2), 2),
            (1, (0, 3), 9),
            (1, (0,), 1),
        ):
            for layer in range(2):
                played.demand(
                    layer, experts, tokens=tokens, wait_ns=wait * MS, compute_ns=MS, tier="host"
                )
                played.now += MS // 2
        played.now += 1000 * MS  # the user types
    return played


def same(first: Trace, second: Trace) -> bool:
    return (
        first.events.dtype == second.events.dtype
        and first.states.dtype == second.states.dtype
        and np.array_equal(first.events, second.events)
        and np.array_equal(first.states, second.states)
        and json.dumps(first.provenance) == json.dumps(second.provenance)
    )


# ---- recording


@given(st.lists(st.integers(0, LAYERS - 1)))
def test_a_step_begins_where_the_layer_is_not_later_than_before(layers):
    steps, step = [], 0
    for place, layer in enumerate(layers):
        step += place > 0 and layer <= layers[place - 1]
        steps.append(step)
    assert finished(*map(demanded, layers)).demands().step.tolist() == steps


def test_more_than_one_token_is_prefill():
    trace = finished(demanded(0, tokens=2), demanded(0, tokens=1))
    assert rows(trace, "demand", "phase", "tokens") == [["prefill", 2], ["decode", 1]]


def test_a_demand_is_followed_by_its_hits_misses_and_evictions():
    missed = [Missed(4, "disk", 7, 3, 5), Missed(1, "staged", 7, 2, 0)]
    demand = demanded(2, hits=(0, 3), misses=(1, 4), arrivals=missed, evictions=((1, None), (4, 2)))
    frame = finished(demand).to_frame()
    assert frame["kind"].tolist() == ["demand", "hit", "hit", "miss", "miss", "eviction"]
    assert frame["expert"].tolist()[1:] == [0, 3, 4, 1, 2]
    assert frame["tier"].tolist()[1:] == ["device", "device", "disk", "staged", "device"]
    assert frame["wait_ms"].tolist() == [5e-6, 0, 0, 5e-6, 0, 0]
    assert set(frame["layer"]) == {2}


def test_an_expert_that_passed_by_was_not_evicted():
    missed = Missed(1, "disk", 7, 0, 0)
    trace = finished(demanded(0, misses=(1,), arrivals=(missed,), evictions=((1, 1),)))
    assert rows(trace, "eviction", "expert") == []


def test_an_interrupted_demand_keeps_its_misses():
    demand = demanded(
        1, hits=(0,), misses=(1, 2), arrivals=[Missed(1, "host", 7, 0, 0)], complete=False
    )
    trace = finished(demand)
    assert trace.demands().expert.tolist() == [0, 1, 2]
    assert trace.demands().hit.tolist() == [True, False, False]
    assert rows(trace, "demand", "outcome") == [["cut"]]
    assert rows(trace, "miss", "nbytes") == [[7], [0]]


def test_times_are_read_from_a_device_when_the_recording_ends():
    reads = []

    def span() -> tuple[int, int]:
        reads.append("device")
        return 40, 2

    recorder = Recorder(clock=lambda: 30)
    recorder.demand(demanded(0, misses=(1,), arrivals=[Missed(1, "host", 7, 99, 99, span)]))
    recorder.copy(Copy(0, 1, "host", "device", 7, 99, 99, False, span))
    assert not reads
    trace = recorder.finish(provenance=FACTS)
    assert reads == ["device"] * 2
    assert rows(trace, "miss", "start_ms", "wait_ms") == [[10e-6, 2e-6]]
    assert rows(trace, "demand", "wait_ms") == [[2e-6]]
    assert rows(trace, "copy", "start_ms", "duration_ms") == [[10e-6, 2e-6]]


@pytest.mark.parametrize(
    ("start", "step"), [(0, 0), (99, 0), (100, 0), (149, 0), (150, 1), (999, 1)]
)
def test_a_copy_belongs_to_the_step_that_it_began_in(start, step):
    demands = (
        demanded(0, start=100, tokens=3),
        demanded(1, start=120, tokens=3),
        demanded(0, start=150),
    )
    trace = finished(
        *demands,
        copies=[Copy(1, 2, "disk", "host", 7, start, 5, True)],
        guesses=[Guess(1, 2, 1, start, start + 5, 7, "used")],
    )
    assert trace.events[-2:]["step"].tolist() == [step, step]
    assert trace.events[-2:]["tokens"].tolist() == [1 if step else 3] * 2


def test_copies_and_guesses_keep_all_that_was_reported():
    trace = finished(
        demanded(0),
        copies=[Copy(1, 2, "disk", "host", 7, 3, 5, True)],
        guesses=[Guess(1, 2, 4, 3, 8, 7, "late")],
    )
    copied = ["layer", "expert", "tier", "target", "nbytes", "duration_ms", "guess"]
    assert rows(trace, "copy", *copied) == [[1, 2, "disk", "host", 7, 5e-6, True]]
    guessed = ["layer", "expert", "outcome", "layers_ahead", "nbytes", "duration_ms"]
    assert rows(trace, "prefetch", *guessed) == [[1, 2, "late", 4, 7, 5e-6]]


def test_a_trace_is_empty_until_its_recording_fills_it():
    trace = Trace()
    trace.provenance.update(prompt="hello", policy="guessed")
    assert repr(trace) == "Trace(empty)"
    recorder = Recorder()
    recorder.demand(demanded(0))
    assert recorder.finish(into=trace, provenance=FACTS | {"policy": "lfu"}) is trace
    assert len(trace.events) == 1
    kept = {name: trace.provenance[name] for name in ("prompt", "policy", "mixoff")}
    assert kept == {"prompt": "hello", "policy": "lfu", "mixoff": mixoff.__version__}


def test_states_are_placed_among_the_demands_of_their_layer():
    played = HandPlayed(layers=2, experts=4, slots=2).record()
    played.demand(0, [1])
    played.demand(1, [1])
    played.demand(1, [2])
    played.resize(3)
    states = played.trace().states
    assert states["position"].tolist() == [0, 0, 1, 2]
    assert states["slots"].tolist() == [2, 2, 3, 3]
    assert states["resident"][-1].tolist() == [False, True, True, False]


# ---- files


@given(forwards, forwards, plain)
def test_a_saved_trace_is_the_same_when_loaded(tmp_path_factory, before, after, extra):
    played = HandPlayed(layers=LAYERS, experts=EXPERTS, slots=2)
    for layer, experts in before:
        played.demand(layer, experts)
    played.record()
    for layer, experts in after:
        played.demand(layer, experts, wait_ns=3, compute_ns=2)
        played.guessed(layer, 0, "open")
    played.cut(1, [0, 1], left=[2])
    played.resize(4)
    trace = played.trace(extra=extra)
    path = tmp_path_factory.mktemp("traces") / "a.trace"
    trace.save(path)
    assert same(Trace.load(path), trace)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    played = chat()
    played.guessed(0, 1, "used")
    played.trace(model="made up").save(tmp_path / "a.trace")
    return tmp_path / "a.trace"


def refused(path: Path, match: str) -> None:
    with pytest.raises(TraceError, match=match) as caught:
        Trace.load(path)
    assert str(path) in str(caught.value)


def rewritten(path: Path, *, metadata: dict[str, str | None] = {}, **columns: Any) -> Path:  # noqa: B006
    """Write a file with changed columns and metadata, without those that are None."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        changed = file.metadata() | metadata
    tensors = load_file(path) | {name.replace("_", ".", 1): new for name, new in columns.items()}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, {name: text for name, text in changed.items() if text is not None})
    return path


def test_a_missing_file_is_refused(tmp_path):
    refused(tmp_path / "none.trace", "can't be read")


def test_a_file_of_anything_else_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self) -> Any:
            return pytest.fail, ("unpickled",)

    path = tmp_path / "a.trace"
    for content in (b"", b"hello", pickle.dumps(Trap()), b"\xff" * 100):
        path.write_bytes(content)
        refused(path, "damaged or no trace")


def test_a_file_cut_anywhere_is_refused(saved):
    content = saved.read_bytes()
    for end in range(0, len(content), 37):
        saved.write_bytes(content[:end])
        refused(saved, "damaged or no trace")


@given(data=st.data())
def test_a_flipped_bit_is_refused_or_gives_a_trace_that_can_be_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flipped") / "a.trace"
    chat().trace().save(path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        trace = Trace.load(path)
    except TraceError:
        return
    trace.to_frame()
    trace.per_token()
    mixoff.replay(trace, "lru")


def test_a_safetensors_file_of_others_is_refused(tmp_path):
    save_file({"weight": np.zeros(3)}, tmp_path / "a.trace")
    refused(tmp_path / "a.trace", "not a trace")


@pytest.mark.parametrize("version", ["2", "0", "", "1.0"])
def test_another_version_is_refused(saved, version):
    refused(rewritten(saved, metadata={"version": version}), "format version.*update mixoff")


@pytest.mark.parametrize("provenance", [None, "{", "[1]", "{}", '{"num_layers": "2"}'])
def test_a_provenance_that_is_none_is_refused(saved, provenance):
    refused(rewritten(saved, metadata={"provenance": provenance}), "damaged")


@pytest.mark.parametrize("column", ["events_kind", "events_wait_ns", "states_resident"])
def test_a_missing_column_is_refused(saved, column):
    refused(rewritten(saved, **{column: None}), "damaged")


@pytest.mark.parametrize(
    "change", [lambda c: c[:-1], lambda c: c.astype(np.float64), lambda c: c[:, None]]
)
def test_a_column_of_another_length_type_or_shape_is_refused(saved, change):
    column = load_file(saved)["events.layer"]
    refused(rewritten(saved, events_layer=change(column)), "damaged")


# Which column, which of its rows, and what is put there.
WRONG = {
    "an event of an unknown kind": ("events.kind", 3, 6),
    "an event's layer isn't below 2": ("events.layer", 0, 2),
    "an event's expert isn't below 4": ("events.expert", 2, 4),
    "an event's expert": ("events.expert", 2, -1),
    "an event of an unknown tier": ("events.tier", 2, 4),
    "a copy to an unknown tier": ("events.target", -2, 9),
    "an unknown outcome": ("events.outcome", -1, 6),
    "an event's step is negative": ("events.step", -1, -1),
    "an event's nbytes is negative": ("events.nbytes", -1, -1),
    "an event's wait_ns is negative": ("events.wait_ns", 0, -1),
    "a hit or miss of another layer": ("events.layer", 1, 1),
    "a hit or miss of another step": ("events.step", 1, 1),
    "a demand needs an expert twice": ("events.expert", 1, 0),
    "steps run backwards": ("events.step", ..., lambda step: step.max() - step),
    "a state's layer isn't below 2": ("states.layer", 0, 2),
    "a state of an unknown reason": ("states.reason", 0, 3),
    "slots aren't 0 to 4": ("states.slots", 0, 5),
    "more residents than slots": ("states.resident", 0, True),
    "a layer's clock is negative": ("states.clock", 0, -1),
    "a state of no demand": ("states.position", 0, 9),
    "a state that isn't the first": ("states.position", 0, 1),
    "not every layer has one state to start from": ("states.layer", 0, 1),
}


@pytest.mark.parametrize("rule", list(WRONG))
def test_numbers_that_no_recording_makes_are_refused(saved, rule):
    name, row, number = WRONG[rule]
    column = load_file(saved)[name]
    column[row] = number(column) if callable(number) else number
    refused(rewritten(saved, **{name.replace(".", "_"): column}), rule)


def test_hits_before_any_demand_are_refused(saved):
    columns = load_file(saved)
    columns["events.kind"][0], columns["events.expert"][0] = 4, 0  # a copy now
    changed = {"events_kind": columns["events.kind"], "events_expert": columns["events.expert"]}
    refused(rewritten(saved, **changed), "hits or misses of no demand")


def test_a_file_names_its_format_version_and_provenance(saved):
    from safetensors import safe_open

    with safe_open(saved, "numpy") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == ("mixoff trace", "1")
    assert json.loads(metadata["provenance"])["model"] == "made up"


@pytest.mark.parametrize("odd", [float("nan"), {1: 2}, (1, 2), b"bytes", {"a": {3}}])
def test_a_provenance_that_is_not_plain_json_is_not_saved(tmp_path, odd):
    trace = Trace.synthetic("uniform", tokens=2, layers=1, experts=2, top_k=1, seed=0)
    trace.provenance["odd"] = odd
    with pytest.raises(TraceError, match="provenance="):
        trace.save(tmp_path / "a.trace")


def test_an_empty_trace_is_not_saved(tmp_path):
    with pytest.raises(TraceError, match="empty until its recording ends"):
        Trace().save(tmp_path / "a.trace")


def test_a_missing_folder_is_refused(tmp_path):
    trace = Trace.synthetic("uniform", tokens=2, layers=1, experts=2, top_k=1, seed=0)
    for write in (trace.save, trace.to_chrome):
        with pytest.raises(TraceError, match="can't be written"):
            write(tmp_path / "none" / "a.trace")


# ---- sums


def test_a_token_lasts_until_the_next_one_begins():
    table = chat().trace().per_token()
    # In each of 2 layers hits are computed (1 ms), misses waited for and computed, then the
    # non-expert parameters (0.5 ms): 1 hit and 2 misses, 1 and 1, 2 misses, 1 hit and nothing after
    # it.
    expected = [2 * (1 + 2 * 3 + 0.5), 2 * (1 + 3 + 0.5), 2 * (2 * 10 + 0.5), 2 * 1 + 0.5]
    assert table["duration_ms"].tolist()[:4] == expected


def test_the_last_token_of_a_reply_does_not_last_while_the_user_types():
    assert chat().trace().per_token()["duration_ms"].max() < 1000


@given(forwards)
def test_tokens_and_layers_add_up_to_the_demands(forward):
    played = HandPlayed(layers=LAYERS, experts=EXPERTS, slots=2).record()
    for layer, experts in forward:
        played.demand(layer, experts, wait_ns=MS, compute_ns=MS)
    trace = played.trace()
    hits, misses = sum(played.hits), len(played.hits) - sum(played.hits)
    for table in trace.per_token(), trace.per_layer():
        assert (table["hits"].sum(), table["misses"].sum()) == (hits, misses)
        assert table["wait_ms"].sum() == misses
    layers = trace.per_layer()
    assert layers["layer"].tolist() == [*range(LAYERS)]
    assert (layers["bytes"] == layers["misses"] * (NBYTES + layers["layer"])).all()
    assert layers["duration_ms"].sum() == hits + 2 * misses


def test_guesses_are_counted_by_their_outcome_and_step():
    played = chat()
    for outcome in ("used", "used", "late", "wasted", "open"):
        played.guessed(1, 2, outcome)
    last = played.trace().per_token().iloc[-1]
    assert [last[f"prefetch_{outcome}"] for outcome in ("used", "late", "wasted")] == [2, 1, 1]


def test_the_slowest_steps_come_longest_first():
    slowest = chat().trace().slowest(3)
    assert slowest["step"].tolist()[0] == 2
    assert slowest["duration_ms"].is_monotonic_decreasing
    assert len(slowest) == 3


def test_a_slow_token_is_explained_by_what_it_waited_for():
    text = chat().trace().explain(2)
    lines = text.splitlines()
    assert lines[0].startswith("Step 2 (decode) took 41.00 ms: ")
    assert lines[1].startswith("It waited 36.00 ms (87.8 %) for experts and computed 5.00 ms;")
    assert lines[2] == "It waited longest in layer 0: 9.00 ms for expert 0, 1000 B in host memory."
    assert lines[3] == "Misses in host memory: 4, 3.91 KiB, 36.00 ms of waiting."
    assert lines[4].startswith("Of 4 experts 0 were in a slot and 4 missed;")


def test_a_token_that_took_no_time_is_explained_too():
    trace = Trace.synthetic("uniform", tokens=3, layers=2, experts=4, top_k=2, seed=0)
    assert "Of 4 experts 4 were in a slot" in trace.explain(1)


@pytest.mark.parametrize("step", [-1, 8])
def test_a_step_that_is_not_there_is_refused(step):
    with pytest.raises(TraceError, match="the trace has 8 steps"):
        chat().trace().explain(step)


def test_a_trace_shows_its_model_its_size_and_its_hit_rate():
    trace = chat().trace()
    assert repr(trace) == "Trace(8 steps, 2 layers of 4 experts, hit rate 43.8%)"
    trace.provenance |= {"checkpoint": "made up", "top_k": 2}
    assert repr(trace).startswith("Trace('made up', 8 steps, 2 layers of 4 experts, top 2, hit")
    synthetic = Trace.synthetic("zipf", tokens=9, layers=2, experts=8, top_k=3, seed=0)
    assert repr(synthetic) == (
        "Trace('synthetic: zipf', 9 steps, 2 layers of 8 experts, top 3, hit rate 100.0%)"
    )


def test_a_trace_without_experts_or_with_odd_provenance_has_a_repr():
    nothing = HandPlayed(layers=1, experts=4, slots=2).record()
    nothing.demand(0, [])
    assert repr(nothing.trace()) == "Trace(1 steps, 1 layers of 4 experts)"
    odd = chat().trace(model=["x"] * 1000, top_k={"a": 1})
    assert repr(odd).startswith("Trace(a list of 1000 values, 8 steps")


# ---- synthetic


@pytest.mark.parametrize("routing", ["uniform", "zipf", "sticky", "cyclic", "constant"])
def test_a_synthetic_trace_is_one_that_can_be_saved_and_made_again(routing, tmp_path):
    sizes = {"tokens": 30, "layers": 2, "experts": 6, "top_k": 3}
    trace = Trace.synthetic(routing, **sizes, seed=3)
    trace.save(tmp_path / "a.trace")
    assert same(Trace.load(tmp_path / "a.trace"), Trace.synthetic(routing, **sizes, seed=3))
    assert np.diff(trace.demands().first).tolist() == [3] * 60
    if routing != "cyclic":
        assert not same(trace, Trace.synthetic(routing, **sizes, seed=4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"routing": "skewed"},
        {"tokens": 0},
        {"layers": 0},
        {"experts": 0},
        {"top_k": 0},
        {"top_k": 5},
        {"routing": "sticky", "top_k": 3},
    ],
)
def test_a_synthetic_trace_out_of_range_is_refused(wrong):
    usual = {"routing": "uniform", "tokens": 3, "layers": 1, "experts": 4, "top_k": 2, "seed": 0}
    with pytest.raises(ConfigError, match=f"{[*wrong][-1]}="):
        Trace.synthetic(**usual | wrong)
