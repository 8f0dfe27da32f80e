"""What a packed matrix looks like to a kernel: its bits, its groups, the form of its scales.

Letters: N rows (outputs), K columns (inputs), G groups a row, R packed rows of a block; of groups
along the outputs, B bundles of rows (`PackedAxis0`).
Packed rows are those of `mixoff.quantization.packing`: byte [r, k] has codes of rows r, r + R and
so on.
"""

from dataclasses import dataclass

from torch import Tensor

GROUPS_PER_PAIR = 128  # of 8-bit scales; what `mixoff.quantization.HQQ` stores
_LARGEST_UNIT = 64
_LARGEST_LANE = 16
_LARGEST_SPAN = 2048  # whole steps of activations, and of vectors

_BLOCKS = {8: 1, 4: 2, 3: 8, 2: 4}  # rows that share a packed row


@dataclass(frozen=True)
class CodeForm:
    """How codes lie in bytes: all that a kernel for groups along the outputs is compiled for.

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
        """Return which planes have a block's codes: of three bits the low two and the high one."""
        return (block % 2, 2) if self.nbits == 3 else (0,)


@dataclass(frozen=True)
class Form(CodeForm):
    """What a kernel for groups along the inputs is compiled for.

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
        """Whether there are kernels for it."""
        size = self.group_size
        return self.nbits in _BLOCKS and size >= 8 and not size & (size - 1)

    @property
    def unit(self) -> int:
        """Neighbours that share a scale and lie in one 64-byte vector."""
        return min(self.group_size, _LARGEST_UNIT)

    @property
    def lane(self) -> int:
        """Neighbours of one group whose products a vector's lane adds up."""
        return min(self.group_size, _LARGEST_LANE)

    @property
    def span(self) -> int:
        """Neighbours that a kernel goes through in a piece: their groups share a pair of scales."""
        return min(GROUPS_PER_PAIR * self.group_size, _LARGEST_SPAN)


@dataclass(frozen=True)
class Packed:
    """An [N, K] matrix with groups along the inputs (axis 1), as kernels take it.

    Parameters
    ----------
    form
        What it is compiled for.
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
        """R: packed rows that a kernel goes through."""
        return -(-self.rows // 8) * 8 // self.form.blocks


@dataclass(frozen=True)
class PackedAxis0:
    """An [N, K] matrix with groups along the outputs (axis 0), as kernels take it.

    Rows b, b + B, b + 2 B and so on, `group_size` of them, are bundle b: each of its columns is a
    group. Since N is a multiple of `group_size`, codes lie in packed rows as those of `Packed` do,
    and all rows of packed row r are of bundle r mod B.

    Parameters
    ----------
    form
        What it is compiled for: 8, 4 or 2 bits.
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
        """R: packed rows that a kernel goes through."""
        return self.rows // self.form.blocks

    @property
    def bundles(self) -> int:
        """B: sets of rows that share their scales."""
        return self.rows // self.group_size
