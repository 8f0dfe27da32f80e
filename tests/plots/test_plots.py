"""Plots show their tables, and their words stay off the data."""

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

import mixoff
import mixoff.policies.base
from mixoff.errors import ConfigError, TraceError
from support.pictures import (
    EXAMPLES,
    axes_of,
    darkness,
    drawn_numbers,
    pixels_at,
    reply,
    speeds,
    swept,
    transferred,
    words_of,
)

mpl.use("Agg")
from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


@cache
def drawn(name: str, style: str = "default") -> list[plt.Axes]:
    """Return the axes of an example of a picture, drawn in a user's style."""
    with plt.style.context(style):
        axes = axes_of(getattr(mixoff.plots, name)(*EXAMPLES[name]()))
        axes[0].get_figure(root=True).canvas.draw()
    return axes


PICTURES = [name for name in mixoff.plots.__all__ if not name.endswith("_table")]
every_picture = pytest.mark.parametrize("name", PICTURES)


def test_every_picture_has_an_example_and_a_table_and_no_table_is_alone():
    assert sorted(EXAMPLES) == sorted(PICTURES)
    assert {f"{name}_table" for name in PICTURES} == {*mixoff.plots.__all__} - {*PICTURES}


@every_picture
def test_a_table_takes_what_its_picture_takes_but_axes(name):
    def wanted(function: Any) -> list[tuple[str, object, object]]:
        parameters = inspect.signature(function).parameters.values()
        return [(each.name, each.kind, each.default) for each in parameters if each.name != "ax"]

    assert wanted(getattr(mixoff.plots, name)) == wanted(getattr(mixoff.plots, f"{name}_table"))


@every_picture
def test_what_is_drawn_is_the_last_column_of_the_table(name):
    shown = np.array([number for axes in drawn(name) for number in drawn_numbers(axes)])
    table = getattr(mixoff.plots, f"{name}_table")(*EXAMPLES[name]())
    column = table.iloc[:, -1].to_numpy(dtype=float, na_value=np.nan)
    assert len(column)
    assert np.sort(shown[~np.isnan(shown)]) == pytest.approx(np.sort(column[~np.isnan(column)]))


@every_picture
@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_paper_is_white_and_words_are_dark_whatever_the_style(name, style):
    axes = drawn(name, style)
    figure = axes[0].get_figure(root=True)
    assert darkness(figure.get_facecolor()) == 0
    assert all(darkness(each.get_facecolor()) == 0 for each in figure.axes)
    light = [text.get_text() for text in words_of(axes[0]) if darkness(text.get_color()) < 0.5]
    on_cells = [text.get_text() for each in axes if each.images for text in each.texts]
    assert not {*light} - {*on_cells}


@every_picture
def test_words_can_be_read_when_a_picture_is_300_pixels_wide(name):
    words = words_of(drawn(name)[0])
    small = {text.get_text(): pixels_at(text, 300) for text in words}
    assert min(small.values()) >= 6.5, small


@every_picture
def test_no_words_lie_on_other_words_or_leave_the_paper(name):
    axes = drawn(name)
    boxes = [(text.get_text(), text.get_window_extent()) for text in words_of(axes[0])]
    crossed = [
        (first, second) for (first, a), (second, b) in combinations(boxes, 2) if a.overlaps(b)
    ]  # fmt: skip
    assert not crossed
    paper = axes[0].get_figure(root=True).bbox
    assert not [
        word for word, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > paper.x1 + 1 or box.y1 > paper.y1 + 1
    ]  # fmt: skip


@every_picture
def test_legends_stay_off_the_data(name):
    figure = drawn(name)[0].get_figure(root=True)
    legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
    for axes in figure.axes:
        box = axes.get_window_extent()
        assert not any(legend.get_window_extent().overlaps(box) for legend in legends)


@every_picture
def test_axes_say_what_they_show(name):
    figure = drawn(name)[0].get_figure(root=True)
    words = [each.get_xlabel() + each.get_ylabel() for each in figure.axes]
    assert any(words) or figure.get_supxlabel()


def takes_axes(name: str) -> bool:
    return "ax" in inspect.signature(getattr(mixoff.plots, name)).parameters


@pytest.mark.parametrize("name", [*filter(takes_axes, mixoff.plots.__all__)])
def test_given_axes_are_used_and_no_others(name):
    draw = getattr(mixoff.plots, name)
    axes = plt.subplots(figsize=(9, 5), layout="constrained")[1]
    assert draw(*EXAMPLES[name](), ax=axes) is axes
    assert len(plt.get_fignums()) == 1


def test_hit_rates_are_drawn_as_they_are():
    table = swept()
    axes = mixoff.plots.hit_rate(table)
    sums = table.groupby(["policy", "slots"])[["hits", "misses"]].sum()
    for line in axes.get_lines():
        rows = sums.loc[line.get_label()]
        assert line.get_xdata().tolist() == [*range(1, 9)]
        assert line.get_ydata().tolist() == (rows["hits"] / rows.sum(axis=1)).tolist()
    assert [line.get_label() for line in axes.get_lines()] == table["policy"].unique().tolist()


def test_bounds_are_grey_and_dashed_and_policies_are_not():
    lines = {line.get_label(): line for line in mixoff.plots.hit_rate(swept()).get_lines()}
    for name, line in lines.items():
        is_bound = name in ("belady", "belady-bypass", "floor")
        assert (line.get_linestyle() != "-") == is_bound
        assert (line.get_color() == "#555555") == is_bound
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines.values()]
    assert len({*looks}) == len(looks)


def test_where_there_is_no_gap_the_plot_says_so():
    trace = mixoff.Trace.synthetic("cyclic", tokens=80, layers=2, experts=8, top_k=2, seed=0)
    axes = mixoff.plots.recovered(mixoff.sweep(trace, ["floor", "lru", "belady-bypass"]), 4)
    assert [text.get_text() for text in axes.texts] == ["no gap to recover"]


class Mine(mixoff.policies.LRU):
    """A policy of a user."""


def test_a_policy_has_the_same_colour_in_every_sweep_and_a_users_policy_another():
    def colours(*policies: object) -> dict[str, str]:
        trace = mixoff.Trace.synthetic("zipf", tokens=9, layers=1, experts=4, top_k=1, seed=0)
        lines = mixoff.plots.hit_rate(mixoff.sweep(trace, policies)).get_lines()
        return {line.get_label(): line.get_color() for line in lines}

    first, second = colours("lru", "lfu", "fifo"), colours(Mine(), "fifo", "lru")
    assert (first["lru"], first["fifo"]) == (second["lru"], second["fifo"])
    assert second["mine"] not in first.values()


def test_the_axis_of_recovered_reaches_to_the_bound_and_colours_show_the_users_policies():
    trace = mixoff.Trace.synthetic("zipf", tokens=99, layers=2, experts=8, top_k=2, seed=0)
    static = mixoff.policies.Static(np.arange(16).reshape(2, 8))
    sweep = mixoff.sweep(trace, ["floor", Mine(), static, "belady", "belady-bypass"], 4)
    axes = mixoff.plots.recovered(sweep, 4)
    names = [label.get_text() for label in axes.get_yticklabels()]
    colours = {name: mpl.colors.to_hex(bar.get_facecolor()).upper() for name, bar in zip(
        names, axes.patches, strict=True
    )}  # fmt: skip
    assert colours == {"belady": "#BBBBBB", "mine": "#D55E00", "static(worth)": "#0072B2"}
    assert axes.get_xlim()[1] >= 1.05


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
    marks = [line.get_xdata()[0] for line in axes.get_lines()]  # guides
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


@pytest.mark.parametrize("wrong", [{"first_step": 5}, {"first_step": -1}, {"steps": 0}])
def test_missing_steps_are_refused(wrong):
    with pytest.raises(TraceError, match=r"first_step=.*the trace has 5 steps"):
        mixoff.plots.timeline(reply(), **wrong)


def test_a_perfect_prediction_lies_on_the_diagonal():
    table = speeds().assign(predicted=speeds()["measured"])
    axes = mixoff.plots.predicted(table, "setting")
    diagonal = next(line for line in axes.get_lines() if line.get_gid() == "guide")
    assert diagonal.get_xdata().tolist() == diagonal.get_ydata().tolist()
    assert (mixoff.plots.predicted_table(table, "setting")["error"] == 0).all()


def test_bars_of_a_token_end_where_its_time_does():
    axes = mixoff.plots.waiting(speeds(), "setting")
    ends = [bar.get_x() + bar.get_width() for bar in axes.containers[-1]]
    table = speeds()
    assert ends == pytest.approx([*(table["compute_ms"] + table["wait_ms"])])
    assert [label.get_text() for label in axes.get_yticklabels()] == [*table["setting"]]


def test_paths_are_named_by_what_the_page_cache_held():
    paths = set(mixoff.plots.latency_table(transferred())["path"])
    assert {"disk to host, direct", "disk to host, cached", "disk to host, uncached"} < paths
    assert "host to device, pinned" in paths


def test_a_number_in_flight_that_was_not_measured_is_refused():
    with pytest.raises(ConfigError, match=r"in_flight=2: measured were 1, 4"):
        mixoff.plots.bandwidth(transferred(), in_flight=2)


@pytest.mark.parametrize("wrong", ["nothing", "wait_ms"])
def test_bars_need_a_column_with_a_value_of_its_own_for_each(wrong):
    table = speeds().assign(wait_ms=1.0)
    with pytest.raises(ConfigError, match="a different value in each row"):
        mixoff.plots.waiting(table, wrong)


def test_what_a_backend_sets_as_it_is_loaded_stays_and_styles_of_the_user_do_too(tmp_path):
    backend = """
from matplotlib import rcParams
from matplotlib.backends.backend_agg import *
rcParams["interactive"] = True  # as the one of notebooks does, which shows no figures else
"""
    (tmp_path / "eager.py").write_text(backend, encoding="utf-8")
    code = """
import matplotlib, mixoff
matplotlib.rcParams["font.size"] = 33
trace = mixoff.Trace.synthetic("zipf", tokens=9, layers=1, experts=4, top_k=1, seed=0)
mixoff.plots.usage(trace)
print(matplotlib.is_interactive(), matplotlib.rcParams["font.size"])
"""
    paths = os.pathsep.join([str(tmp_path), str(Path(mixoff.__file__).parents[2])])
    variables = {**os.environ, "MPLBACKEND": "module://eager", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True 33.0\n"
