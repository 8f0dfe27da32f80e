"""Gauges show rates only where there are any, in readable colours."""

import re
from math import nan

import pytest

from mixoff.cache.stats import CacheStats
from mixoff.widget.gauges import Reading, colours, gauges_html, luminance
from support.html_page import Page


def test_a_layer_without_demands_has_no_rate():
    html = gauges_html([Reading("this reply", nan, CacheStats((0, 3), (0, 1)))])
    assert "\u2013" in Page(html).text
    assert "nan" not in html.lower()


@pytest.mark.parametrize("percent", range(0, 101, 5))
def test_numbers_are_readable_on_every_colour(percent):
    style = colours(percent / 100)
    light = luminance(*map(int, re.findall(r"\d+", style.split(";")[0])))
    text = 1.0 if "color:#fff" in style else 0.0
    high, low = max(light, text), min(light, text)
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_more_hits_are_never_darker():
    lights = [
        luminance(*map(int, re.findall(r"\d+", colours(percent / 100).split(";")[0])))
        for percent in range(101)
    ]
    assert lights == sorted(lights)
