"""Pictures show what the numbers say, and their words stay off the data."""

from collections.abc import Iterator

import matplotlib as mpl
import pytest
from recordings import MS, HandPlayed

import mixoff
from mixoff.errors import TraceError
from mixoff.trace import Trace

mpl.use("Agg")
from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def reply(layers: int = 4, steps: int = 5) -> Trace:
    """Return the trace of a prompt and some tokens: every other miss was guessed in time."""
    played = HandPlayed(layers=layers, experts=8, slots=4).record()
    for step in range(steps):
        for layer in range(layers):
            first = (3 * step + 5 * layer) % 8
            wanted = range(8) if step == 0 else (first, (first + 2 + step) % 8)
            tokens = 9 if step == 0 else 1
            for miss in {*wanted} - played.layers[layer].residents:
                took = 2 * MS
                played.copied(layer, miss, "disk", played.now - took // 2, took, guess=miss % 2)
            played.demand(
                layer, wanted, tokens=tokens, wait_ns=MS + layer * MS // 4, compute_ns=MS // 2,
                tier="host",
            )  # fmt: skip
            played.now += 3 * MS // 4
    return played.trace()


def table() -> object:
    trace = Trace.synthetic("zipf", tokens=400, layers=3, experts=8, top_k=2, seed=1)
    policies = ["belady-bypass", "belady", "lfu", "lru", "fifo", "random", "static", "floor"]
    return mixoff.sweep(trace, policies)


def overlaps(axes: plt.Axes, artist: object) -> bool:
    axes.figure.canvas.draw()
    return bool(artist.get_window_extent().overlaps(axes.get_window_extent()))


def test_hit_rates_are_drawn_as_they_are():
    found = table()
    axes = mixoff.plots.hit_rate(found)
    sums = found.groupby(["policy", "slots"])[["hits", "misses"]].sum()
    for line in axes.get_lines():
        rows = sums.loc[line.get_label()]
        assert line.get_xdata().tolist() == [*range(1, 9)]
        assert line.get_ydata().tolist() == (rows["hits"] / rows.sum(axis=1)).tolist()
    assert [line.get_label() for line in axes.get_lines()] == found["policy"].unique().tolist()


def test_bounds_are_grey_and_dashed_and_policies_are_not():
    lines = {line.get_label(): line for line in mixoff.plots.hit_rate(table()).get_lines()}
    for name, line in lines.items():
        is_bound = name in ("belady", "belady-bypass", "floor")
        assert (line.get_linestyle() != "-") == is_bound
        assert (line.get_color() == "#555555") == is_bound
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines.values()]
    assert len({*looks}) == len(looks)


def test_lanes_of_a_time_line_are_named_compute_first():
    axes = mixoff.plots.timeline(reply(), steps=2)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[:3] == ["compute", "waiting for experts", "disk to device"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert axes.get_xlabel() == "ms since step 0 began"


def test_a_time_line_shows_the_steps_that_were_asked_for():
    trace = reply()
    starts = trace.per_token()["start_ms"]
    axes = mixoff.plots.timeline(trace, first_step=2, steps=2)
    marks = [line.get_xdata()[0] for line in axes.get_lines()]
    assert marks == pytest.approx([0, starts[3] - starts[2]])
    assert [text.get_text() for text in axes.texts] == ["step 2", "3"]


def test_bars_of_a_time_line_are_as_long_as_the_waits():
    trace = reply()
    axes = mixoff.plots.timeline(trace, first_step=1, steps=1)
    vermilion = mpl.colors.to_rgba("#D55E00")
    (bars,) = [
        bars for bars in axes.collections
        if bars.get_paths() and tuple(bars.get_facecolor()[0]) == vermilion
    ]  # fmt: skip
    lengths = [path.get_extents().width for path in bars.get_paths()]
    assert sum(lengths) == pytest.approx(trace.per_token()["wait_ms"][1])


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: mixoff.plots.hit_rate(table(), ax),
        lambda ax: mixoff.plots.timeline(reply(), ax=ax),
    ],
)
def test_legends_stay_off_the_data_and_a_given_axes_is_used(draw):
    given = plt.subplots(figsize=(9, 4), layout="constrained")[1]
    axes = draw(given)
    assert axes is given
    assert not overlaps(axes, axes.get_legend())


@pytest.mark.parametrize("wrong", [{"first_step": 5}, {"first_step": -1}, {"steps": 0}])
def test_steps_that_are_not_there_are_refused(wrong):
    with pytest.raises(TraceError, match=r"first_step=.*the trace has 5 steps"):
        mixoff.plots.timeline(reply(), **wrong)
