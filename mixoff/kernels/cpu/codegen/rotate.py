"""Rotary embedding of one token's queries and keys (arXiv 2104.09864). Knows heads."""

import math

from llvmlite import ir

from mixoff.kernels.cpu.codegen.floats import FLOATS, PIECE, load_floats, store_floats
from mixoff.kernels.cpu.codegen.ir import F32, Function, Value, fill

BUFFERS = ("x", "cos", "sin", "query", "key", "value")
NUMBERS = ("first", "last", "heads", "groups")


def add_rotate(module: ir.Module, size: int, scaling: float, *, bfloat16: bool = False) -> Function:
    """Write the function ``rotate``: one token's queries, keys and values of some heads.

    Buffers: float32 x [heads + 2 groups, size], heads of queries, then of keys, then of values; cos
    and sin [size]; float32 query [heads, size], rotated and times `scaling` and log2(e), as
    ``attend`` takes it; key, rotated, and value [groups, size]. cos, sin, key and value are float32
    or `bfloat16`. Numbers: the range of heads of x, heads and groups. Half a head is whole vectors.
    """
    function = Function(module, "rotate", BUFFERS, NUMBERS)
    _Rotate(function, size, scaling, bfloat16).write()
    return function.end()


class _Rotate:
    def __init__(self, function: Function, size: int, scaling: float, bfloat16: bool) -> None:
        self._f, self._size, self._bfloat16 = function, size, bfloat16
        self._factor = fill(F32, PIECE, scaling / math.log(2))

    def write(self) -> None:
        f, build = self._f, self._f.build
        heads, groups = f["heads"], f["groups"]

        def head(number: Value) -> None:
            x = f.at(f["x"], f.mul(number, 4 * self._size))
            with build.if_else(build.icmp_signed("<", number, heads)) as (then, otherwise):
                with then:
                    self._query(x, number)
                with otherwise:
                    rest = build.sub(number, heads)
                    with build.if_else(build.icmp_signed("<", rest, groups)) as (key, value):
                        with key:
                            self._key(x, rest)
                        with value:
                            self._value(x, build.sub(rest, groups))

        f.loop(f["first"], f["last"], 1, head)

    def _query(self, x: Value, number: Value) -> None:
        f = self._f
        for piece, value in self._rotated(x):
            at = f.mul(f.add(f.mul(number, self._size), piece), 4)
            f.store(f.build.fmul(value, self._factor), f["query"], at, align=4)

    def _key(self, x: Value, number: Value) -> None:
        for piece, value in self._rotated(x):
            self._store(value, "key", number, piece)

    def _value(self, x: Value, number: Value) -> None:
        for piece in range(0, self._size, PIECE):
            self._store(self._loaded(x, piece), "value", number, piece)

    def _rotated(self, x: Value) -> list[tuple[int, Value]]:
        """Return the first column of each piece of a head, and the piece rotated."""
        f, build, half = self._f, self._f.build, self._size // 2
        pieces = []
        for first in range(0, half, PIECE):
            low, high = self._loaded(x, first), self._loaded(x, first + half)
            for at, along, across in ((first, low, build.fneg(high)), (first + half, high, low)):
                product = build.fmul(across, self._factors("sin", at))
                pieces.append((at, f.fma(along, self._factors("cos", at), product)))
        return pieces

    def _loaded(self, x: Value, piece: int) -> Value:
        return self._f.load(x, self._f.number(4 * piece), FLOATS, align=4)

    def _factors(self, name: str, piece: int) -> Value:
        f = self._f
        return load_floats(f, f[name], f.number(piece), bfloat16=self._bfloat16)

    def _store(self, value: Value, name: str, number: Value, piece: int) -> None:
        f = self._f
        at = f.add(f.mul(number, self._size), piece)
        store_floats(f, value, f[name], at, bfloat16=self._bfloat16)
