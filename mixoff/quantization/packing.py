"""Codes of 8, 4, 3 or 2 bits, packed into bytes or words. Knows bits; knows nothing of scales.

Letters: N rows (outputs), K columns (inputs).

Bytes have the layout of hqq's axis 1 for 8, 4 and 2 bits: a byte holds 8/nbits codes. The rows are
divided into that many equal blocks, and byte [r, k] holds the codes of row r of each block, the
first block in the highest bits. A shift and a mask then unpack a whole block of neighbouring rows.
3 bits, which don't divide a byte, are stored as two planes: the two low bits of all codes, then the
high bit of all codes. So a packed tensor has nbits/8 * N rows for any number of bits. Rows are
padded with zeros to a multiple of 8, so that both planes have whole blocks.

Words are hqq's other layout for 3 bits: an int32 holds ten codes, of rows in ten equal blocks.
"""

import torch
from torch import Tensor

BITS = (8, 4, 3, 2)
_PLANES = {8: (8,), 4: (4,), 3: (2, 1), 2: (2,)}  # bits of each plane, the low bits first
_CODES_PER_WORD = 10  # of 3 bits
_PIECE = 1 << 18  # bytes that a CPU unpacks at a time, so that temporary tensors stay in its cache


def packed_shape(rows: int, columns: int, nbits: int) -> tuple[int, int]:
    """Return the shape of the packed bytes of an [N, K] matrix: [ceil(N/8) * nbits, K]."""
    return -(-rows // 8) * nbits, columns


def pack(codes: Tensor, nbits: int) -> Tensor:
    """Return the packed bytes [ceil(N/8) * nbits, K] of uint8 codes [N, K] below 2**nbits."""
    codes = torch.nn.functional.pad(codes, (0, 0, 0, -codes.shape[0] % 8))
    planes, shift = [], 0
    for plane_bits in _PLANES[nbits]:
        planes.append(_pack_plane((codes >> shift) & (2**plane_bits - 1), plane_bits))
        shift += plane_bits
    return torch.cat(planes)  # [N * nbits / 8, K]


def unpack(packed: Tensor, nbits: int, rows: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Return the codes [N, K] of packed bytes; `rows` is N, without the padding."""
    padded_rows = packed.shape[0] * 8 // nbits
    codes = torch.empty(padded_rows, packed.shape[1], dtype=dtype, device=packed.device)
    start, shift = 0, 0
    for plane_bits in _PLANES[nbits]:
        plane = packed[start : start + padded_rows * plane_bits // 8]
        _unpack_plane(plane, plane_bits, codes, shift)
        start += plane.shape[0]
        shift += plane_bits
    return codes[:rows]


def packed_words_shape(rows: int, columns: int) -> tuple[int, int]:
    """Return the shape of the words of an [N, K] matrix of 3-bit codes: [ceil(N/10), K]."""
    return -(-rows // _CODES_PER_WORD), columns


def pack_words(codes: Tensor) -> Tensor:
    """Return the int32 words [ceil(N/10), K] of uint8 codes [N, K] of 3 bits."""
    codes = torch.nn.functional.pad(codes, (0, 0, 0, -codes.shape[0] % _CODES_PER_WORD))
    packed = torch.zeros_like(codes[: len(codes) // _CODES_PER_WORD], dtype=torch.int32)
    for block, part in enumerate(codes.chunk(_CODES_PER_WORD)):
        packed |= part.int() << _word_shift(block)
    return packed


def unpack_words(packed: Tensor, rows: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Return the 3-bit codes [N, K] of packed words; `rows` is N, without the padding."""
    shape = (len(packed) * _CODES_PER_WORD, packed.shape[1])
    codes = torch.empty(shape, dtype=dtype, device=packed.device)
    for block, part in enumerate(codes.chunk(_CODES_PER_WORD)):
        part.copy_((packed >> _word_shift(block)) & 7)
    return codes[:rows]


def _word_shift(block: int) -> int:
    return 3 * (_CODES_PER_WORD - 1 - block)


def _pack_plane(codes: Tensor, nbits: int) -> Tensor:
    packed = torch.zeros_like(codes[: codes.shape[0] * nbits // 8])
    for block, part in enumerate(codes.chunk(8 // nbits)):
        packed |= part << (8 - nbits * (block + 1))
    return packed


def _unpack_plane(plane: Tensor, nbits: int, codes: Tensor, shift: int) -> None:
    """Write a plane's bits into codes, or above the `shift` bits that the codes already have."""
    rows, columns = plane.shape
    step = max(1, _PIECE // max(1, columns)) if plane.is_cpu else rows
    for first in range(0, rows, step):
        piece = plane[first : first + step]
        for block, part in enumerate(codes.chunk(8 // nbits)):
            bits = (piece >> (8 - nbits * (block + 1))) & (2**nbits - 1)
            if shift:  # codes may be floats, which have no `or`: adding sets the same bits
                part[first : first + step].add_(bits << shift)
            else:
                part[first : first + step].copy_(bits)
