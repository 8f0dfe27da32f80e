"""Counts of an expert cache as HTML: a table and a map of layers. Knows numbers; counts nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mixoff.cache.stats import CacheStats
from mixoff.units import format_nbytes

# Cividis in equal steps: dark blue to yellow, in the same order for every kind of colour vision.
_SCALE = (
    (0, 34, 78),
    (53, 69, 108),
    (102, 105, 112),
    (148, 142, 119),
    (200, 184, 102),
    (254, 232, 56),
)
_WHITE_BELOW = 0.179  # the luminance on which white and black text have the same contrast


@dataclass(frozen=True)
class Reading:
    """The gauges' values for a span of time.

    Attributes
    ----------
    title
        The heading of the span's column.
    tokens_per_second
        The decode rate; NaN if nothing was decoded.
    cache
        The cache's counts in the span.
    is_estimate
        Whether the rate counts pieces of text, since tokens are counted at a reply's end.
    """

    title: str
    tokens_per_second: float
    cache: CacheStats
    is_estimate: bool = False


def gauges_html(readings: Sequence[Reading]) -> str:
    """Return a table with a column per reading, and below it a map of layers per reading."""
    heads = "".join(f"<th scope='col'>{reading.title}</th>" for reading in readings)
    rows = "".join(
        f"<tr><th scope='row'>{name}</th>{''.join(f'<td>{value}</td>' for value in values)}</tr>"
        for name, values in _rows(readings)
    )
    table = f"<table class='mixoff-table'><tr><td></td>{heads}</tr>{rows}</table>"
    return table + "".join(map(_layers_html, readings)) + _legend_html()


def _rows(readings: Sequence[Reading]) -> list[tuple[str, list[str]]]:
    stats = [reading.cache for reading in readings]
    computed = [("computed in host memory", [f"{s.computed:,}" for s in stats])]
    return [
        ("tokens/s", [_rate(reading) for reading in readings]),
        ("hit rate", [_percent(s.hit_rate, " %") for s in stats]),
        ("hits, misses", [f"{s.hits:,}, {s.misses:,}" for s in stats]),
        ("bytes moved", [format_nbytes(s.bytes_moved) for s in stats]),
        ("time waited", [_time(s.wait_ns) for s in stats]),
        *(computed if any(s.computed for s in stats) else []),
    ]


def _rate(reading: Reading) -> str:
    if math.isnan(reading.tokens_per_second):
        return "\u2013"
    return "\u2248 " * reading.is_estimate + f"{reading.tokens_per_second:.1f}"


def _time(ns: int) -> str:
    return f"{ns / 1e6:.1f} ms" if ns < 1e9 else f"{ns / 1e9:.1f} s"


def _percent(rate: float, unit: str = "") -> str:
    return "\u2013" if math.isnan(rate) else f"{100 * rate:.0f}{unit}"


def _layers_html(reading: Reading) -> str:
    stats = reading.cache
    cells = zip(stats.hit_rate_per_layer, stats.hits_per_layer, stats.misses_per_layer, strict=True)
    layers = "".join(_cell_html(layer, *cell) for layer, cell in enumerate(cells))
    return (
        f"<div class='mixoff-caption'>hits per layer in %, {reading.title}</div>"
        f"<div class='mixoff-layers' role='list'>{layers}</div>"
    )


def _cell_html(layer: int, rate: float, hits: int, misses: int) -> str:
    label = f"layer {layer}: {hits} hits, {misses} misses"
    style = "" if math.isnan(rate) else f" style='{colours(rate)}'"
    return (
        f"<span class='mixoff-layer' role='listitem' title='{label}' aria-label='{label}'{style}>"
        f"{_percent(rate)}</span>"
    )


def _legend_html() -> str:
    stops = ",".join(f"rgb{colour}" for colour in _SCALE)
    bar = f"<span class='mixoff-scale' style='background:linear-gradient(90deg,{stops})'></span>"
    return f"<div class='mixoff-caption'>0 {bar} 100</div>"


def colours(rate: float) -> str:
    """Return CSS for a cell of a hit rate from 0 to 1: a background, and a readable text colour."""
    position = rate * (len(_SCALE) - 1)
    low = min(int(position), len(_SCALE) - 2)
    red, green, blue = (
        round(a + (b - a) * (position - low))
        for a, b in zip(_SCALE[low], _SCALE[low + 1], strict=True)
    )
    text = "#fff" if luminance(red, green, blue) < _WHITE_BELOW else "#000"
    return f"background:rgb({red},{green},{blue});color:{text}"


def luminance(*rgb: int) -> float:
    """Return a colour's relative luminance, 0 to 1 (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _shares(rgb)]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _shares(rgb: Sequence[int]) -> list[float]:
    return [part / 255 for part in rgb]
