"""An example of every plot, and functions for its numbers and its words."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.text import Text

import mixoff
from mixoff.plots.style import GUIDE
from mixoff.trace import Trace
from support.recordings import MS, HandPlayed

POLICIES = ["belady-bypass", "belady", "lfu", "lru", "fifo", "random", "static", "floor"]
POINTS_PER_INCH = 72
DATA = Path(__file__).parents[2] / "data"


@cache
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


@cache
def routed(routing: Any = "zipf", layers: int = 3, seed: int = 1) -> Trace:
    return Trace.synthetic(routing, tokens=400, layers=layers, experts=8, top_k=2, seed=seed)


@cache
def swept(layers: int = 3) -> Any:
    return mixoff.sweep(routed(layers=layers), POLICIES)


@cache
def kinds() -> dict[str, Trace]:
    routings = {"prose": "zipf", "arithmetic": "sticky", "code": "uniform", "another": "cyclic"}
    return {kind: routed(routing) for kind, routing in routings.items()}


def schemes() -> Any:
    """Return the report's Table 1, whose sizes lie close together."""
    published = pd.read_csv(DATA / "published_table1.csv")
    return published.assign(
        nbytes=published["size_gib"] * 2**30, loss=np.log(published["wikitext2_ppl"])
    )


def published_speeds() -> Any:
    """Return the report's Table 2, of experts in 2 bits."""
    published = pd.read_csv(DATA / "published_table2.csv", comment="#")
    names = {"gpu": "machine", "tokens_per_s": "tokens_per_second"}
    return published[published["experts_nbits"] == 2].rename(columns=names)


def plan() -> Any:
    sizes = {"slots": 11, "staging": 0.3, "non_expert": 1.3, "kv_cache": 0.5, "workspace": 0.5}
    tiers = {"device": sizes, "host": {"records": 6, "bounce": 0.3}, "disk": {"experts": 17}}
    rows = [(t, part, size * 2**30) for t, parts in tiers.items() for part, size in parts.items()]
    return pd.DataFrame(rows, columns=["tier", "part", "nbytes"])


def recalls() -> Any:
    cells = product((1, 2, 4), range(1, 9), range(3))
    rows = [
        ("next-gate", ahead, guesses, layer, 1 - (1 - guesses / 8) ** (3 / ahead), guesses / 8)
        for ahead, guesses, layer in cells
    ]
    columns = ["predictor", "layers_ahead", "guesses", "layer", "recall", "chance"]
    return pd.DataFrame(rows, columns=columns)


def transferred() -> Any:
    """Return made-up transfers over all paths of a machine with a GPU."""
    paths = [
        ("disk", "host", "direct", "past it", 2.0),
        ("disk", "host", "buffered", "in it", 9.0),
        ("disk", "host", "buffered", "dropped from it", 1.2),
        ("host", "host", "copied", "no file", 8.0),
        ("host", "device", "pinned", "no file", 12.0),
        ("host", "device", "pageable", "no file", 6.0),
        ("device", "host", "pinned", "no file", 11.0),
        ("device", "host", "pageable", "no file", 5.0),
    ]
    rows = []
    for (*path, rate), number, power in product(paths, (1, 4), range(7)):
        nbytes = 4096 * 4**power
        ms = 0.05 + number * nbytes / rate / 1e6
        rows.append((*path, number, nbytes, ms, number * nbytes / ms / 1e6))
    columns = ["source", "target", "method", "page_cache", "in_flight", "nbytes", "ms", "gb_per_s"]
    return pd.DataFrame(rows, columns=columns)


def speeds() -> Any:
    """Return made-up speeds of four settings."""
    return pd.DataFrame(
        {
            "setting": [
                "4 slots, no prefetch",
                "4 slots, 1 guess",
                "4 slots, 2 guesses",
                "8 slots",
            ],
            "compute_ms": [20.0, 21.0, 22.0, 19.0],
            "wait_ms": [18.0, 9.0, 4.0, 0.0],
            "measured": [26.3, 33.3, 38.5, 52.6],
            "predicted": [27.0, 31.0, 40.0, 51.0],
        }
    )


EXAMPLES: dict[str, Callable[[], tuple[Any, ...]]] = {  # the arguments of every plot
    "balance": lambda: (routed(layers=32),),
    "usage_divergence": lambda: (kinds(),),
    "hit_rate": lambda: (swept(),),
    "kind_hit_rate": lambda: (kinds(),),
    "layer_hit_rate": lambda: (swept(layers=32),),
    "memory": lambda: (plan(),),
    "quality": lambda: (schemes(),),
    "recall": lambda: (recalls(),),
    "relative_speed": lambda: (published_speeds(),),
    "recovered": lambda: (swept(), 4),
    "reuse_distance": lambda: (routed(layers=8),),
    "timeline": lambda: (reply(),),
    "latency": lambda: (transferred(),),
    "bandwidth": lambda: (transferred(),),
    "in_flight": lambda: (transferred(),),
    "waiting": lambda: (speeds(), "setting"),
    "predicted": lambda: (speeds(), "setting"),
    "usage": lambda: (routed(layers=32),),
}


def axes_of(drawn: Any) -> list[Axes]:
    """Return the axes of a plot, which has one or several."""
    return [drawn] if isinstance(drawn, Axes) else list(drawn)


def drawn_numbers(axes: Axes) -> Iterator[float]:
    """Yield the numbers that axes show: heights of points, lengths of bars, colours of cells."""
    for line in axes.get_lines():
        if line.get_gid() != GUIDE:
            yield from map(float, line.get_ydata())
    for bars in axes.containers:
        yield from map(float, getattr(bars, "datavalues", ()))
    for image in axes.images:
        yield from np.ma.filled(image.get_array().astype(float), np.nan).ravel().tolist()
    for collection in axes.collections:
        if collection.get_gid() == GUIDE:
            continue
        if isinstance(collection, mpl.collections.PathCollection):
            yield from map(float, collection.get_offsets()[:, 1])
        elif isinstance(collection, mpl.collections.QuadMesh):
            yield from map(float, collection.get_array().ravel())
        elif isinstance(collection, mpl.collections.PolyCollection):
            yield from (path.get_extents().width for path in collection.get_paths())


def words_of(axes: Axes) -> list[Text]:
    """Return every visible text of a plot, which must be drawn already.

    Not among them: labels of ticks beyond the end of their axis, which matplotlib makes and hides.
    """
    figure = axes.get_figure(root=True)
    every = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    hidden = {tick for axis in every for tick in (*axis.majorTicks, *axis.minorTicks)}
    hidden -= {tick for axis in every for tick in axis._update_ticks()}
    unseen = {id(label) for tick in hidden for label in (tick.label1, tick.label2)}
    texts = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text for text in texts if text.get_text().strip() and id(text) not in unseen]


def darkness(colour: Any) -> float:
    """Return 0 for white and 1 for black."""
    return 1 - float(np.dot(mpl.colors.to_rgb(colour), (0.2126, 0.7152, 0.0722)))


def pixels_at(text: Text, width: int) -> float:
    """Return the height of letters in pixels in a plot of a width in pixels."""
    figure = text.get_figure(root=True)
    return text.get_fontsize() * width / (figure.get_figwidth() * POINTS_PER_INCH)
