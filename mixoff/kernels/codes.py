"""Codes and scales as a kernel reads them from a packed row. Knows the packing's bits.

A position is a byte offset into a row, the same in every plane.
"""

from collections.abc import Iterable, Sequence

from mixoff.kernels.dot import LANES, WIDTH
from mixoff.kernels.ir import F16, F32, I8, I32, Function, Value, fill, vector
from mixoff.kernels.layout import GROUPS_PER_PAIR, CodeForm, Form

_AHEAD = 16384  # bytes of codes, which are read once: memory is far
_SCALES_AHEAD = 1024

_BYTES = vector(I8, WIDTH)
_WORDS = vector(I32, LANES)


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
        How many bytes before they are read codes are asked for.
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
        ahead: int = _AHEAD,
    ) -> None:
        self._f, self._form, self._ahead = function, form, ahead
        at = function.mul(row, columns)
        self._starts = [at]
        if form.nbits == 3:  # two packed rows of the low bits, then one of the high bit
            low = function.mul(rows, columns)
            self._starts = [at, function.add(at, low), function.add(at, low, low)]
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
                continue
            at = f.add(start, position)
            if count is None:
                f.prefetch(f["codes"], f.add(at, self._ahead))
                planes.append(f.load(f["codes"], at, _BYTES))
            else:
                planes.append(f.load_first(f["codes"], at, _BYTES, count))
        return planes

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
    """

    def __init__(
        self, function: Function, form: Form, row: Value, groups: Value, *, fused: bool
    ) -> None:
        self._f, self._bytes, self._fused = function, form.byte_scales, fused
        self._itemsize = 1 if form.byte_scales else 2
        self._start = function.mul(row, groups)
        pairs = function.div(function.add(groups, GROUPS_PER_PAIR - 1), GROUPS_PER_PAIR)
        self._pairs = function.mul(row, pairs)

    def read(self, group: Value, lanes: int, count: Value | None = None) -> tuple[Value, Value]:
        """Return scale and zero of some groups, <lanes x float> each; `count` as for codes."""
        scale, zero = (self._stored(name, group, lanes, count) for name in ("scale", "zero"))
        if not self._bytes:
            return scale, zero
        f = self._f
        pair = f.mul(f.add(self._pairs, f.div(group, GROUPS_PER_PAIR)), 16)
        four = f.load(f["pairs"], pair, vector(F32, 4), align=4)
        numbers = [f.pick(four, [n] * lanes) for n in range(4)]
        factor_s, offset_s, factor_z, offset_z = numbers
        return self._linear(scale, factor_s, offset_s), self._linear(zero, factor_z, offset_z)

    def _linear(self, value: Value, factor: Value, offset: Value) -> Value:
        if self._fused:
            return self._f.fma(value, factor, offset)
        build = self._f.build
        return build.fadd(build.fmul(value, factor), offset)

    def _stored(self, name: str, group: Value, lanes: int, count: Value | None) -> Value:
        f = self._f
        kind = vector(I8 if self._bytes else F16, lanes)
        at = f.mul(f.add(self._start, group), self._itemsize)
        if count is None:
            f.prefetch(f[name], f.add(at, _SCALES_AHEAD))
            value = f.load(f[name], at, kind, align=self._itemsize)
        else:
            value = f.load_first(f[name], at, kind, count)
        floats = vector(F32, lanes)
        return f.build.uitofp(value, floats) if self._bytes else f.build.fpext(value, floats)


def existing_row(function: Function, row: Value) -> Value:
    """Return a row's number, or the last one's for the rows that only fill up a packed row."""
    last = function.build.sub(function["rows"], function.number(1))
    inside = function.build.icmp_signed("<", row, last)
    return function.build.select(inside, row, last, name="row")
