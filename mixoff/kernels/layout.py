"""The layout of packed matrices as kernels read it: codes, groups, and the form of scales.

Letters: N rows (outputs), K columns (inputs), G groups a row, R packed rows of a block; for groups
along the outputs, B bundles of rows (`PackedAxis0`).
Packed rows are those of `mixoff.quantization.packing`: byte [r, k] holds codes of rows r, r + R and
so on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from mixoff.quantization.hqq import GROUPS_PER_PAIR

_LARGEST_UNIT = 64  # bytes of a vector
_LARGEST_LANE = 16
_LARGEST_SPAN = 2048  # a multiple of the blocks of activations and of all vectors

_BLOCKS = {8: 1, 4: 2, 3: 8, 2: 4}  # rows that share a packed row


@dataclass(frozen=True)
class CodeForm:
    """The layout of codes in bytes: all that kernels for groups along the outputs depend on.

    Parameters
    ----------
    nbits
        Bits of a code: 8, 4, 3 or 2.
    """

    nbits: int

    @property
    def blocks(self) -> int:
        """Rows whose codes share a packed row of the first plane that is read."""
        return _BLOCKS[self.nbits]

    def planes(self, block: int) -> tuple[int, ...]:
        """Return the numbers of the planes that hold a block's codes.

        With 3 bits there are three planes of R packed rows: the low two bits of even blocks, those
        of odd blocks, and the high bits of all blocks.
        """
        return (block % 2, 2) if self.nbits == 3 else (0,)


@dataclass(frozen=True)
class Form(CodeForm):
    """What kernels for groups along the inputs are compiled for.

    Parameters
    ----------
    nbits
        Bits of a code: 8, 4, 3 or 2.
    group_size
        Weights of a row that share a scale and a zero: a power of two, 8 or more.
    byte_scales
        Whether scales and zeros are bytes with float32 pairs, or float16.
    """

    group_size: int
    byte_scales: bool

    @property
    def is_supported(self) -> bool:
        """Whether there are kernels for this form."""
        size = self.group_size
        return self.nbits in _BLOCKS and size >= 8 and not size & (size - 1)

    @property
    def unit(self) -> int:
        """Neighbouring columns that share a scale and lie in one 64-byte vector."""
        return min(self.group_size, _LARGEST_UNIT)

    @property
    def lane(self) -> int:
        """Neighbouring columns of one group whose products are summed in one lane of a vector."""
        return min(self.group_size, _LARGEST_LANE)

    @property
    def span(self) -> int:
        """Neighbouring columns that kernels process together: their groups share one pair."""
        return min(GROUPS_PER_PAIR * self.group_size, _LARGEST_SPAN)

    def packed_rows(self, rows: int) -> int:
        """Return R, the packed rows of a plane, for N rows."""
        return -(-rows // 8) * 8 // self.blocks


class Packed(NamedTuple):
    """An [N, K] matrix with groups along the inputs (axis 1), as kernels take it.

    It is a tuple, since one is made for each product, and a frozen dataclass takes four times as
    long to make.

    Parameters
    ----------
    form
        What its kernels are compiled for.
    rows, columns
        N, K.
    codes
        Packed bytes, uint8.
    scale, zero
        [N, G], float16 or uint8.
    pairs
        [N, ceil(G / 128), 4] float32 for bytes: factor and offset of scales, then of zeros.
    """

    form: Form
    rows: int
    columns: int
    codes: Tensor
    scale: Tensor
    zero: Tensor
    pairs: Tensor | None

    @property
    def packed_rows(self) -> int:
        """R: packed rows of a plane."""
        return self.form.packed_rows(self.rows)


class PackedLocation(NamedTuple):
    """Where a `Packed` matrix lies in host memory: what a plan depends on, without its tensors.

    Parameters
    ----------
    form
        What its kernels are compiled for.
    rows, columns
        N, K.
    codes, scale, zero, pairs
        Addresses of its parts; 0 for pairs that it doesn't have.
    """

    form: Form
    rows: int
    columns: int
    codes: int
    scale: int
    zero: int
    pairs: int

    @classmethod
    def of(cls, matrix: Packed) -> "PackedLocation":
        """Return where a matrix lies now."""
        form, rows, columns, codes, scale, zero, pairs = matrix
        addresses = (codes.data_ptr(), scale.data_ptr(), zero.data_ptr())
        return cls(form, rows, columns, *addresses, 0 if pairs is None else pairs.data_ptr())

    @property
    def packed_rows(self) -> int:
        """R: packed rows of a plane."""
        return self.form.packed_rows(self.rows)


Located = Sequence[Sequence[PackedLocation]]  # the pieces of each of several matrices


class PackedAxis0(NamedTuple):
    """An [N, K] matrix with groups along the outputs (axis 0), as kernels take it.

    Rows b, b + B, b + 2 B and so on, `group_size` of them, are bundle b: each of its columns is a
    group. Since N is a multiple of `group_size`, codes lie in packed rows as those of `Packed` do,
    and all rows of packed row r belong to bundle r mod B.

    Parameters
    ----------
    form
        What its kernels are compiled for: 8, 4 or 2 bits.
    group_size
        Rows of a bundle: a multiple of 8.
    rows, columns
        N, K.
    codes
        Packed bytes, uint8.
    scale, zero
        uint8 with B * K numbers.
    scale_step, scale_zero
        float16 with S numbers: scale i is (scale[i] - scale_zero[i mod S]) * scale_step[i mod S].
    zero_step, zero_zero
        float16 with one number each: zero i is (zero[i] - zero_zero) * zero_step.
    """

    form: CodeForm
    group_size: int
    rows: int
    columns: int
    codes: Tensor
    scale: Tensor
    zero: Tensor
    scale_step: Tensor
    scale_zero: Tensor
    zero_step: Tensor
    zero_zero: Tensor

    @property
    def packed_rows(self) -> int:
        """R: packed rows."""
        return self.rows // self.form.blocks

    @property
    def bundles(self) -> int:
        """B: sets of rows that share their scales."""
        return self.rows // self.group_size
