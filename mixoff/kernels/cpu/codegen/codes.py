"""Codes and scales as kernels read them from packed rows. Knows the bits of packed bytes.

A position is an offset in bytes from the start of a packed row, the same in every plane.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from mixoff.kernels.cpu.codegen.dot import LANES, WIDTH
from mixoff.kernels.cpu.codegen.ir import (
    F16,
    F32,
    I8,
    I32,
    Function,
    Value,
    fill,
    vector,
)
from mixoff.kernels.layout import CodeForm, Form
from mixoff.quantization.hqq import GROUPS_PER_PAIR

_LINE = 64  # bytes of a cache line
_PAIR_NBYTES = 16

_BYTES = vector(I8, WIDTH)
_WORDS = vector(I32, LANES)


@dataclass(frozen=True)
class Prefetch:
    """How far ahead memory is prefetched that is read once: which is best depends on the CPU.

    Parameters
    ----------
    codes, scales
        Bytes from what is read now to what is prefetched.
    cache
        The cache to fetch into: 1; 2, which may wait for more lines at a time than the first; or 0
        for the first alone, so that data that is read once displaces nothing in the others.
    """

    codes: int
    scales: int
    cache: int


# Measured to be the best on Zen 5 and on Zen 4.
NEAR, FAR = Prefetch(8192, 256, 0), Prefetch(16384, 1024, 2)


class Codes:
    """The codes of the rows that share one packed row, each times a power of two.

    A code is left at its place in the byte if the result is at most `largest`: that saves the
    instruction that shifts it. `factors` has the powers of two.

    Parameters
    ----------
    function, form
        The function under construction, and the form that it is for.
    row
        r, the packed row.
    rows
        R.
    columns
        K.
    largest
        The largest byte that may result; 0 for the codes themselves.
    prefetch
        How far ahead codes are prefetched.
    """

    def __init__(
        self,
        function: Function,
        form: CodeForm,
        row: Value,
        rows: Value,
        columns: Value,
        *,
        largest: int = 0,
        prefetch: Prefetch = FAR,
    ) -> None:
        self._f, self._form, self._prefetch = function, form, prefetch
        self._read_planes = set[int]()
        first = function.at(function["codes"], function.mul(row, columns))
        self._starts = [first]
        if form.nbits == 3:  # 2 R packed rows of the low bits, then R of the high bit
            plane = function.mul(rows, columns)
            second = function.at(first, plane)
            self._starts = [first, second, function.at(second, plane)]
        most = (1 << form.nbits) - 1
        self._shifts = [  # the lowest bit of each block's code in its byte, and in the result
            (bit, next(n for n in range(bit, -1, -1) if not n or most << n <= largest))
            for bit in map(self._lowest_bit, range(form.blocks))
        ]

    @property
    def factors(self) -> list[int]:
        """The power of two that each row's codes are multiplied by."""
        return [1 << shift for _, shift in self._shifts]

    def read(self, position: Value, count: Value | None = None) -> list[Value]:
        """Return <64 x i8> for each row; for a last, shorter vector only `count` lanes are read."""
        planes = self.planes(position, range(self._form.blocks), count)
        return [self.row(planes, block) for block in range(self._form.blocks)]

    def planes(
        self, position: Value, blocks: Iterable[int], count: Value | None = None
    ) -> list[Value | None]:
        """Return packed bytes <64 x i8> of each plane; None for one without codes of the rows."""
        f, planes = self._f, list[Value | None]()
        needed = {plane for block in blocks for plane in self._form.planes(block)}
        for plane, start in enumerate(self._starts):
            if plane not in needed:
                planes.append(None)
            elif count is None:
                if plane not in self._read_planes:
                    distance = self._prefetch.codes
                    f.prefetch(start, f.add(position, distance), self._prefetch.cache)
                planes.append(f.load(start, position, _BYTES))
            else:
                planes.append(f.load_first(start, position, _BYTES, count))
        return planes

    def note_read(self, blocks: Iterable[int]) -> None:
        """Note that the planes of some rows were read: code that follows finds them in a cache."""
        self._read_planes.update(plane for block in blocks for plane in self._form.planes(block))

    def row(self, planes: Sequence[Value], block: int) -> Value:
        """Return the codes <64 x i8> of one row, in the order of the bytes of the planes."""
        nbits, (bit, shift) = self._form.nbits, self._shifts[block]
        if nbits == 8:
            return planes[0]
        if nbits != 3:
            return self._masked(planes[0], bit - shift, ((1 << nbits) - 1) << shift)
        low, high = (planes[plane] for plane in self._form.planes(block))
        low = self._masked(low, bit - shift, 3 << shift)
        # The high bit of a block is bit 7 - block of its byte; it belongs two above the low bits.
        return self._f.build.or_(low, self._masked(high, 5 - block - shift, 4 << shift))

    def _lowest_bit(self, block: int) -> int:
        """Return the lowest bit of a block's code in its byte; for 3 bits, of the low two."""
        return 6 - 2 * (block // 2) if self._form.nbits == 3 else 8 - self._form.nbits * (block + 1)

    def _masked(self, plane: Value, shift: int, mask: int) -> Value:
        """Return bytes shifted to the right, or to the left by negative numbers, and masked.

        There are no shifts of bytes. Dwords are shifted instead, and the mask removes the bits that
        have crossed from one byte into the next.
        """
        build = self._f.build
        words = build.bitcast(plane, _WORDS)
        if shift > 0:
            words = build.lshr(words, fill(I32, LANES, shift))
        elif shift < 0:
            words = build.shl(words, fill(I32, LANES, -shift))
        return build.and_(build.bitcast(words, _BYTES), fill(I8, WIDTH, mask))


class Scales:
    """The scales and zeros of one row.

    Parameters
    ----------
    function, form
        The function under construction, and the form that it is for.
    row
        n, an existing row of the matrix.
    groups
        G.
    fused
        Whether byte * factor + offset is rounded once. Kernels that dequantize round twice, as
        torch does, so that weights are torch's to the bit.
    times
        A power of two that zeros are multiplied by.
    prefetch
        How far ahead scales and zeros are prefetched.
    """

    def __init__(
        self,
        function: Function,
        form: Form,
        row: Value,
        groups: Value,
        *,
        fused: bool,
        times: int = 1,
        prefetch: Prefetch = FAR,
    ) -> None:
        self._f, self._form, self._fused, self._prefetch = function, form, fused, prefetch
        self._times = times
        self._itemsize = 1 if form.byte_scales else 2
        start = function.mul(row, groups, self._itemsize)
        self._starts = [function.at(function[name], start) for name in ("scale", "zero")]
        pairs = function.div(function.add(groups, GROUPS_PER_PAIR - 1), GROUPS_PER_PAIR)
        self._pairs = function.at(function["pairs"], function.mul(row, pairs, _PAIR_NBYTES))
        self._numbers: list[Value] = []

    def begin(self, k: Value) -> None:
        """Begin a span of columns: load the pairs of its groups, and prefetch a later span."""
        f, group = self._f, self._f.div(k, self._form.group_size)
        groups = max(1, self._form.span // self._form.group_size)
        at = f.add(f.mul(group, self._itemsize), self._prefetch.scales)
        for start in self._starts:
            for line in range(0, groups * self._itemsize, _LINE):
                f.prefetch(start, f.add(at, line), self._prefetch.cache)
        if self._form.byte_scales:
            pair = f.mul(f.div(group, GROUPS_PER_PAIR), _PAIR_NBYTES)
            offsets = [f.add(pair, 4 * number) for number in range(4)]
            self._numbers = [f.load(self._pairs, offset, F32, align=4) for offset in offsets]
            times = ir.Constant(F32, float(self._times))
            self._numbers[2:] = [f.build.fmul(number, times) for number in self._numbers[2:]]

    def read(self, k: Value, lanes: int, count: Value | None = None) -> tuple[Value, Value]:
        """Return scales and zeros of the groups from a column on, <lanes x float> each."""
        group = self._f.div(k, self._form.group_size)
        scale, zero = (self._stored(start, group, lanes, count) for start in self._starts)
        if not self._form.byte_scales:
            return scale, self._f.build.fmul(zero, fill(F32, lanes, float(self._times)))
        numbers = [self._f.splat(number, lanes) for number in self._numbers]
        factor_s, offset_s, factor_z, offset_z = numbers
        return self._linear(scale, factor_s, offset_s), self._linear(zero, factor_z, offset_z)

    def _linear(self, value: Value, factor: Value, offset: Value) -> Value:
        if self._fused:
            return self._f.fma(value, factor, offset)
        build = self._f.build
        return build.fadd(build.fmul(value, factor), offset)

    def _stored(self, start: Value, group: Value, lanes: int, count: Value | None) -> Value:
        f = self._f
        kind = vector(I8 if self._form.byte_scales else F16, lanes)
        at = f.mul(group, self._itemsize)
        if count is None:
            value = f.load(start, at, kind, align=self._itemsize)
        else:
            value = f.load_first(start, at, kind, count)
        floats = vector(F32, lanes)
        return (
            f.build.uitofp(value, floats)
            if self._form.byte_scales
            else f.build.fpext(value, floats)
        )


def existing_row(function: Function, row: Value) -> Value:
    """Return the number of a row, and of the last row for padding of a packed row.

    Padding has codes but no scales: kernels read those of the last row, and drop the result.
    """
    last = function.build.sub(function["rows"], function.number(1))
    inside = function.build.icmp_signed("<", row, last)
    return function.build.select(inside, row, last, name="row")
