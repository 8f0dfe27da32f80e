"""Quantized matrices as kernels take them, and plans that are kept by what they depend on.

Knows quantizations; knows nothing of code for devices.
"""

from collections.abc import Callable, Hashable
from functools import cache
from typing import Generic, ParamSpec, TypeVar

from mixoff.kernels.layout import CodeForm, Form, Packed, PackedAxis0, PackedLocation
from mixoff.quantization import (
    HQQ,
    HQQAxis0,
    PackedMatrix,
    Quantization,
    QuantizedTensor,
    Shape,
)

_MOST_PLANS = 1 << 14  # more than 128 experts in each of 96 layers need

Arguments = ParamSpec("Arguments")
Plan = TypeVar("Plan")


def packed_kind(stored: Quantization, shape: Shape) -> type[Packed | PackedAxis0] | None:
    """Return the type in which kernels take a matrix; None if there are no kernels for it."""
    if isinstance(stored, HQQAxis0):  # not of words, nor with groups that cut columns
        return None if stored.nbits == 3 or shape[0] % stored.group_size else PackedAxis0
    if isinstance(stored, HQQ) and _form(stored) is not None:
        return Packed
    return None


def as_packed(matrix: QuantizedTensor) -> Packed | PackedAxis0 | None:
    """Return a matrix's parts as kernels take them; None if there are no kernels for it."""
    stored = matrix.quantization
    return _axis0(matrix, stored) if isinstance(stored, HQQAxis0) else _axis1(matrix)


def locations(*matrices: PackedMatrix) -> tuple[PackedLocation, ...] | None:
    """Return where the pieces of matrices lie in host memory; None if they can't share a plan.

    They can if there are kernels for all of them that take the same activations, as integers with
    the same sums in the same order.
    """
    located: list[PackedLocation] = []
    for matrix in matrices:
        for piece in matrix.pieces:
            packed = _axis1(piece)
            if packed is None or not packed.codes.is_cpu:
                return None
            first = located[0].form if located else packed.form
            if packed.form is not first and not packed.form.takes_activations_of(first):
                return None
            located.append(PackedLocation.of(packed))
    return tuple(located)


class Plans(Generic[Arguments, Plan]):
    """Makes plans, and keeps them by their arguments, up to a bound.

    A plan depends on its arguments alone, which have forms, sizes and addresses for matrices
    (`PackedLocation`), and it holds no tensors. So it keeps no memory alive, and may outlive the
    matrices that it was made for. That is safe: a plan is only run for tensors that the caller
    holds, at the addresses that they have then, and reads their content at each run. If memory was
    freed, moved or written again since the plan was made, then either an address or a form differs
    and another plan is made, or the plan is right for what lies there now.

    Parameters
    ----------
    make
        Makes a plan. Its arguments must be hashable.
    """

    def __init__(self, make: Callable[Arguments, Plan]) -> None:
        self._make = make
        self._plans: dict[Hashable, Plan] = {}

    def __call__(self, *args: Arguments.args, **settings: Arguments.kwargs) -> Plan:
        """Return the plan of some arguments."""
        key = (args, *settings.items())
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()  # a single step, so that threads need no lock
            plan = self._plans[key] = self._make(*args, **settings)
        return plan

    def __reduce__(self) -> tuple[Callable[..., "Plans[Arguments, Plan]"], tuple[object, ...]]:
        return Plans, (self._make,)  # in another process, code has other addresses: none are copied


@cache
def _form(stored: HQQ) -> Form | None:
    """Return what kernels are compiled for; None if there are none. Equal ones are one object."""
    form = Form(stored.nbits, stored.group_size, stored.scale_nbits == 8)
    return form if form.is_supported else None


def _axis1(matrix: QuantizedTensor) -> Packed | None:
    stored, parts = matrix.quantization, matrix.parts
    form = _form(stored) if isinstance(stored, HQQ) else None
    if form is None:
        return None
    rows, columns = matrix.shape
    scales = (parts["scale"], parts["zero"], parts.get("pairs"))
    return Packed(form, rows, columns, parts["W_q"], *scales)


def _axis0(matrix: QuantizedTensor, stored: HQQAxis0) -> PackedAxis0 | None:
    if packed_kind(stored, matrix.shape) is None:
        return None
    names = (
        "W_q",
        "meta.scale_q",
        "meta.zero_q",
        "meta.meta_scale.scale",
        "meta.meta_scale.zero",
        "meta.meta_zero.scale",
        "meta.meta_zero.zero",
    )
    parts = [matrix.parts[name] for name in names]
    rows, columns = matrix.shape
    return PackedAxis0(CodeForm(stored.nbits), stored.group_size, rows, columns, *parts)
