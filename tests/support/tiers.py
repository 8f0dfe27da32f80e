"""The two tiers of tests: `make check` runs the fast one, `make check-all` runs everything.

A test belongs to both. What the fast tier leaves out of it is left out by a parameter: values that
are marked `full`, and drawn examples beyond a few.
"""

from collections.abc import Collection, Iterable
from itertools import product
from typing import Any

import pytest

FEW = 5  # drawn examples of a property in the fast tier

_everything = False


def run_everything(everything: bool) -> None:
    """Choose the tier, before tests are imported."""
    global _everything
    _everything = everything


def examples(number: int) -> int:
    """Return how many examples of a property are drawn: the number, or a few in the fast tier."""
    return number if _everything else min(number, FEW)


def tiered(values: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """Return values for `parametrize`, of which the fast tier has those in `fast` alone."""
    full = pytest.mark.full
    return [value if value in fast else pytest.param(value, marks=full) for value in values]


def diagonal(*axes: Iterable[Any]) -> list[Any]:
    """Return the product of axes for `parametrize`, of which the fast tier has the diagonal alone.

    The diagonal has each value of each axis at least once: the nth of every axis together.
    """
    listed = [list(axis) for axis in axes]
    longest = max(map(len, listed))
    fast = {tuple(n % len(axis) for axis in listed) for n in range(longest)}
    places = product(*(range(len(axis)) for axis in listed))
    return [
        pytest.param(
            *(axis[n] for axis, n in zip(listed, place, strict=True)),
            marks=() if place in fast else pytest.mark.full,
        )
        for place in places
    ]
