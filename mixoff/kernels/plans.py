"""Quantized matrices as kernels take them, and what is planned for them and kept with them.

Knows quantizations; nothing of devices' code.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import ref

from mixoff.kernels.layout import CodeForm, Form, Packed, PackedAxis0
from mixoff.quantization import (
    HQQ,
    HQQAxis0,
    PackedMatrix,
    Quantization,
    QuantizedTensor,
    Shape,
)


def packed_kind(stored: Quantization, shape: Shape) -> type | None:
    """Return how kernels take a matrix; None if there are none for it."""
    if isinstance(stored, HQQAxis0):  # not of words, nor with groups that cut columns
        return None if stored.nbits == 3 or shape[0] % stored.group_size else PackedAxis0
    if isinstance(stored, HQQ) and _form(stored).is_supported:
        return Packed
    return None


@cache
def _form(stored: HQQ) -> Form:
    return Form(stored.nbits, stored.group_size, stored.scale_nbits == 8)


def as_packed(matrix: QuantizedTensor) -> Packed | PackedAxis0 | None:
    """Return a matrix as kernels take it, made once; None if there are none for it."""
    if "packed" not in matrix.kept:
        matrix.kept["packed"] = _as_packed(matrix)
    packed: Packed | PackedAxis0 | None = matrix.kept["packed"]
    return packed


@dataclass(frozen=True)
class _Kept:
    """What was planned, for which matrices, where these lay, and for which settings."""

    matrices: Sequence[ref[PackedMatrix]]  # no more than that, since one of them keeps this
    addresses: Sequence[Sequence[int]]
    settings: Hashable
    plan: Any

    def is_of(self, matrices: Sequence[PackedMatrix]) -> bool:
        """Return whether it was planned for these matrices, where they are now."""
        for own, addresses, matrix in zip(self.matrices, self.addresses, matrices, strict=True):
            if own() is not matrix or addresses != _addresses(matrix):
                return False
        return True


def planned(
    name: str,
    matrices: Sequence[PackedMatrix],
    settings: Hashable,
    plan: Callable[[], Any],
) -> Any:
    """Return what is planned for matrices and settings: made once, and kept with the first of them.

    Parameters
    ----------
    name
        Tells plans of one matrix apart.
    """
    keeper = matrices[0].pieces[0]
    kept: _Kept | None = keeper.kept.get(name)
    if kept is None or kept.settings != settings or not kept.is_of(matrices):
        kept = _Kept([*map(ref, matrices)], [*map(_addresses, matrices)], settings, plan())
        keeper.kept[name] = kept
    return kept.plan


def _addresses(matrix: PackedMatrix) -> list[int]:
    """Return where the first parts of a matrix's pieces lie, with which the others move."""
    return [next(iter(piece.parts.values())).data_ptr() for piece in matrix.pieces]


def packed_alike(*matrices: PackedMatrix) -> list[Packed] | None:
    """Return a CPU's matrices, in pieces, that take the same activations; None if they don't."""
    pieces = []
    for matrix in matrices:
        for piece in matrix.pieces:
            packed = as_packed(piece)
            if not isinstance(packed, Packed) or packed.codes.device.type != "cpu":
                return None
            pieces.append(packed)
    first = pieces[0].form
    alike = all((p.form.unit, p.form.lane) == (first.unit, first.lane) for p in pieces)
    return pieces if alike else None


def _as_packed(matrix: QuantizedTensor) -> Packed | PackedAxis0 | None:
    stored, parts = matrix.quantization, matrix.parts
    rows, columns = matrix.shape
    if packed_kind(stored, matrix.shape) is None:
        return None
    if isinstance(stored, HQQAxis0):
        return _as_packed_axis0(stored, matrix)
    assert isinstance(stored, HQQ)
    scales = (parts["scale"], parts["zero"], parts.get("pairs"))
    return Packed(_form(stored), rows, columns, parts["W_q"], *scales)


def _as_packed_axis0(stored: HQQAxis0, matrix: QuantizedTensor) -> PackedAxis0:
    rows, columns = matrix.shape
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
    return PackedAxis0(CodeForm(stored.nbits), stored.group_size, rows, columns, *parts)
