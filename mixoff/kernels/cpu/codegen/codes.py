"""Codes and scales as a kernel reads them from a packed row. Knows the packing's bits.

A position is a byte offset into a row, the same in every plane.
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
from mixoff.kernels.layout import GROUPS_PER_PAIR, CodeForm, Form

_LINE = 64  # bytes of a cache line
_PAIR_NBYTES = 16

_BYTES = vector(I8, WIDTH)
_WORDS = vector(I32, LANES)


@dataclass(frozen=True)
class Ahead:
    """How far ahead memory is asked for, which is read once: how far depends on the CPU.

    Parameters
    ----------
    codes, scales
        Bytes before they are read.
    cache
        The cache they are asked into: 1, or 2, to which more can be on its way; 0 for the first
        alone, so that what is read once pushes nothing out of the others.
    """

    codes: int
    scales: int
    cache: int


NEAR, FAR = Ahead(8192, 256, 0), Ahead(16384, 1024, 2)  # what Zen 5 and Zen 4 do best with


class Codes:
    """The codes of the rows that share one packed row, each times a power of two.

    A field is left where it lies in its byte if the byte may be so large: that saves shifting it.

    Parameters
    ----------
    function, form
        What is written, and for what.
    row
        r, the packed row.
    rows
        R.
    columns
        K.
    largest
        The largest byte that may come out; 0 for the codes themselves.
    ahead
        How far ahead they are asked for.
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
        ahead: Ahead = FAR,
    ) -> None:
        self._f, self._form, self._ahead = function, form, ahead
        self._asked = set[int]()
        first = function.at(function["codes"], function.mul(row, columns))
        self._starts = [first]
        if form.nbits == 3:  # two packed rows of the low bits, then one of the high bit
            low = function.mul(rows, columns)
            second = function.at(first, low)
            self._starts = [first, second, function.at(second, low)]
        most = (1 << form.nbits) - 1
        self._places = [  # where each block's field is, and where it may stay
            (field, next(n for n in range(field, -1, -1) if not n or most << n <= largest))
            for field in map(self._field, range(form.blocks))
        ]

    @property
    def factors(self) -> list[int]:
        """What each row's codes are multiplied by."""
        return [1 << place for _, place in self._places]

    def read(self, position: Value, count: Value | None = None) -> list[Value]:
        """Return <64 x i8> for each row; of a last, shorter vector only `count` lanes."""
        planes = self.planes(position, range(self._form.blocks), count)
        return [self.row(planes, block) for block in range(self._form.blocks)]

    def planes(
        self, position: Value, blocks: Iterable[int], count: Value | None = None
    ) -> list[Value | None]:
        """Return <64 x i8> of packed bytes of each plane that has codes of some rows."""
        f, planes = self._f, list[Value | None]()
        needed = {plane for block in blocks for plane in self._form.planes(block)}
        for plane, start in enumerate(self._starts):
            if plane not in needed:
                planes.append(None)
            elif count is None:
                if plane not in self._asked:
                    f.prefetch(start, f.add(position, self._ahead.codes), self._ahead.cache)
                planes.append(f.load(start, position, _BYTES))
            else:
                planes.append(f.load_first(start, position, _BYTES, count))
        return planes

    def gone_through(self, blocks: Iterable[int]) -> None:
        """Note that all planes of some rows were read: they aren't asked for again."""
        self._asked.update(plane for block in blocks for plane in self._form.planes(block))

    def row(self, planes: Sequence[Value], block: int) -> Value:
        """Return the codes <64 x i8> of one row, in the order of the bytes of the planes."""
        nbits, (field, place) = self._form.nbits, self._places[block]
        if nbits == 8:
            return planes[0]
        if nbits != 3:
            return self._masked(planes[0], field - place, ((1 << nbits) - 1) << place)
        low, high = (planes[plane] for plane in self._form.planes(block))
        low = self._masked(low, field - place, 3 << place)
        return self._f.build.or_(low, self._masked(high, 5 - block - place, 4 << place))

    def _field(self, block: int) -> int:
        """Return where in its byte a block's code begins; of three bits, the low two."""
        return 6 - 2 * (block // 2) if self._form.nbits == 3 else 8 - self._form.nbits * (block + 1)

    def _masked(self, plane: Value, shift: int, mask: int) -> Value:
        """Return bytes shifted to the right, or left if below 0, of which a mask is kept."""
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
        What is written, and for what.
    row
        n, the row of the matrix; one that is there.
    groups
        G.
    fused
        Whether byte * factor + offset is rounded once; torch, which dequantizes, rounds twice.
    times
        A power of two that zeros are multiplied by.
    ahead
        How far ahead they are asked for.
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
        ahead: Ahead = FAR,
    ) -> None:
        self._f, self._form, self._fused, self._ahead = function, form, fused, ahead
        self._times = times
        self._itemsize = 1 if form.byte_scales else 2
        start = function.mul(row, groups, self._itemsize)
        self._starts = [function.at(function[name], start) for name in ("scale", "zero")]
        pairs = function.div(function.add(groups, GROUPS_PER_PAIR - 1), GROUPS_PER_PAIR)
        self._pairs = function.at(function["pairs"], function.mul(row, pairs, _PAIR_NBYTES))
        self._numbers: list[Value] = []

    def begin(self, k: Value) -> None:
        """Go on to a span of columns: load what its groups share, and ask for one further on."""
        f, group = self._f, self._f.div(k, self._form.group_size)
        groups = max(1, self._form.span // self._form.group_size)
        at = f.add(f.mul(group, self._itemsize), self._ahead.scales)
        for start in self._starts:
            for line in range(0, groups * self._itemsize, _LINE):
                f.prefetch(start, f.add(at, line), self._ahead.cache)
        if self._form.byte_scales:
            pair = f.mul(f.div(group, GROUPS_PER_PAIR), _PAIR_NBYTES)
            at = [f.add(pair, 4 * number) for number in range(4)]
            self._numbers = [f.load(self._pairs, one, F32, align=4) for one in at]
            times = ir.Constant(F32, float(self._times))
            self._numbers[2:] = [f.build.fmul(number, times) for number in self._numbers[2:]]

    def read(self, k: Value, lanes: int, count: Value | None = None) -> tuple[Value, Value]:
        """Return scale and zero of the groups from a column on, <lanes x float> each."""
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
    """Return a row's number, or the last one's for the rows that only fill up a packed row."""
    last = function.build.sub(function["rows"], function.number(1))
    inside = function.build.icmp_signed("<", row, last)
    return function.build.select(inside, row, last, name="row")
