"""Quantized matrices as kernels take them, and plans that are kept by what they depend on.

Knows quantizations; knows nothing of code for devices.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Concatenate, Generic, ParamSpec, TypeVar

from mixoff.kernels.layout import CodeForm, Form, Located, Packed, PackedAxis0, PackedLocation
from mixoff.quantization import (
    HQQ,
    HQQAxis0,
    PackedMatrix,
    Quantization,
    QuantizedTensor,
    Shape,
)

_MOST_PLANS = 1 << 13  # of about 7 kB: one for each of 128 experts in 48 layers, and more

Settings = ParamSpec("Settings")
Plan = TypeVar("Plan")


def packed_kind(stored: Quantization, shape: Shape) -> type[Packed | PackedAxis0] | None:
    """Return the type in which kernels take a matrix; None if there are no kernels for it."""
    if isinstance(stored, HQQAxis0):  # not of words, nor with groups that cut columns
        return None if stored.nbits == 3 or shape[0] % stored.group_size else PackedAxis0
    return Packed if isinstance(stored, HQQ) and _form(stored) else None


def as_packed(matrix: QuantizedTensor) -> Packed | PackedAxis0 | None:
    """Return a matrix's parts as kernels take them; None if there are no kernels for it."""
    stored = matrix.quantization
    return _axis0(matrix, stored) if isinstance(stored, HQQAxis0) else _axis1(matrix)


class Plans(Generic[Settings, Plan]):
    """Makes plans for matrices and one token, and keeps them up to a bound.

    A plan is found by the forms, shapes and addresses of its matrices, and by its settings. It
    depends on nothing else and holds no tensors. So it keeps no memory alive, and may outlive the
    matrices that it was made for. That is safe: it is only run for tensors that a caller holds, at
    the addresses that they have then, and reads their content at each run. If memory was freed,
    moved or written again since the plan was made, then either a form, a shape or an address
    differs and another plan is made, or the plan is right for what lies there now.

    Parameters
    ----------
    make
        Returns a plan for matrices in host memory and hashable settings; None if there are no
        kernels for these matrices together.
    """

    def __init__(self, make: Callable[Concatenate[Located, Settings], Plan | None]) -> None:
        self._make = make
        self._plans: dict[Hashable, Plan | None] = {}

    def __call__(
        self, matrices: Sequence[PackedMatrix], *args: Settings.args, **settings: Settings.kwargs
    ) -> Plan | None:
        """Return the plan for matrices and settings; None if there are no kernels for them."""
        fields: list[Hashable] = [*args, *settings.items()]
        for matrix in matrices:
            fields.append(len(matrix.pieces))
            for piece in matrix.pieces:
                stored, parts = piece.quantization, piece.parts
                if not isinstance(stored, HQQ) or not parts["W_q"].is_cpu:
                    return None
                # The address of each part: parts may be replaced one by one.
                codes, scale, zero = parts["W_q"], parts["scale"], parts["zero"]
                fields += (stored, piece.shape)
                fields += (codes.data_ptr(), scale.data_ptr(), zero.data_ptr())
                if stored.scale_nbits == 8:
                    fields.append(parts["pairs"].data_ptr())
        key = tuple(fields)
        try:
            return self._plans[key]
        except KeyError:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()  # a single operation, so that threads need no lock
            located = _located(matrices)
            plan = None if located is None else self._make(located, *args, **settings)
            self._plans[key] = plan
            return plan

    def __reduce__(self) -> tuple[object, ...]:
        return Plans, (self._make,)  # in another process, code has other addresses: none are copied


def _located(matrices: Sequence[PackedMatrix]) -> Located | None:
    """Return where the pieces of matrices lie; None if one has no kernels."""
    packed = [[_axis1(piece) for piece in matrix.pieces] for matrix in matrices]
    if any(piece is None for pieces in packed for piece in pieces):
        return None
    return [[PackedLocation.of(piece) for piece in pieces if piece] for pieces in packed]


@cache
def _form(stored: HQQ) -> Form | None:
    """Return the form that kernels are compiled for; None if there are no kernels for it."""
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
    rows, columns = matrix.shape
    parts = [matrix.parts[name] for name in names]
    return PackedAxis0(CodeForm(stored.nbits), stored.group_size, rows, columns, *parts)
