"""The instruction sets of this machine, and how many of them a tier tests. Needs llvmlite."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest

from mixoff.kernels.cpu.compile import usable_isas
from support.tiers import diagonal, tiered

EVERY_ISA = usable_isas()
_FAST = tuple(dict.fromkeys((EVERY_ISA[0], EVERY_ISA[-1])))  # the fastest and generic
ISAS = tiered(EVERY_ISA, _FAST)  # for `parametrize`


def isa_diagonal(*axes: Iterable[Any]) -> list[Any]:
    """Return the product of all instruction sets and axes, of which the fast tier has a diagonal.

    It is the diagonal of the fastest and generic instruction set and the axes.
    """
    others = product((isa for isa in EVERY_ISA if isa not in _FAST), *axes)
    return [
        *diagonal(_FAST, *axes),
        *(pytest.param(*values, marks=pytest.mark.full) for values in others),
    ]
