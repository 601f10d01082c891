"""Which payloads are plain JSON of the schema's types: a strict check that owes nothing to the parser that comes after it.

Columnar JSON parsers are lenient in ways that change with their versions: Arrow's takes NaN, several documents in one
payload, broken UTF-8 and numbers without bound, as long as they stand in fields that nobody asked for. And where one
value is of another type than its column, Arrow refuses all records that it was given. Only payloads that pass here take
the columnar way, so both ways give the same samples, and a bad record costs the others nothing. Grammar: RFC 8259.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from streamtrain.samples.fields import Field
from streamtrain.samples.schema import LEAF, Schema

__all__ = ["PlainCheck"]

DEPTH_MAX = 60
"""Open brackets are kept in the bits of one word. Deeper records are decoded one by one."""

NUMBER_BYTES_MAX = 128
"""Numbers this short are finite where their exponent is negative or of at most two digits."""

_QUOTE, _BACKSLASH, _COMMA, _COLON, _MINUS, _PLUS, _POINT, _ZERO = (ord(c) for c in '"\\,:-+.0')
_OPEN_OBJECT, _CLOSE_OBJECT, _OPEN_LIST, _CLOSE_LIST = (ord(c) for c in "{}[]")

# What may come next, between two tokens.
_VALUE, _VALUE_OR_CLOSE, _KEY, _KEY_OR_CLOSE, _COLON_NEXT, _COMMA_OR_CLOSE, _NOTHING = range(7)


# What a field holds. The nodes of a level are _NODES + its depth; a list of either has _LIST added.
_ANYTHING, _INT, _NUMBER, _STRING = range(4)
_NODES, _LIST = 16, 64

_FNV_BASIS, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_INT64_MAX = np.uint64(2**63 - 1)
_KINDS = {"int": _INT, "time": _INT, "number": _NUMBER, "string": _STRING}


class PlainCheck:
    """Knows the keys of a schema's records. Threads may share it."""

    def __init__(self, schema: Schema, fields: Mapping[str, Field]) -> None:
        names = [*(level.name for level in schema.levels), LEAF]
        keys = [
            (names.index(f.level), name, _KINDS[f.type] + (_LIST if f.many else 0))
            for name, f in fields.items()
        ]
        keys += [(d, level.children, _LIST + _NODES + d + 1) for d, level in enumerate(schema.levels)]
        texts = [name.encode() for _, name, _ in keys]
        self._text = np.frombuffer(b"".join(texts), np.uint8)
        self._bounds = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
        self._depths = np.array([depth for depth, _, _ in keys], np.int64)
        self._kinds = np.array([kind for _, _, kind in keys], np.int64)
        self._table = np.full(4 << len(keys).bit_length(), -1, np.int64)
        _fill(self._table, self._text, self._bounds, self._depths)

    def of(self, records: Sequence[bytes]) -> NDArray[np.bool_]:
        """`[n]` bool: whether each record is exactly one plain JSON object in valid UTF-8, of the schema's types."""
        joined = b"\n".join(records)
        ends = np.cumsum(np.fromiter(map(len, records), np.int64, len(records)) + 1) - 1
        plain = np.empty(len(records), np.bool_)
        keys = (self._table, self._text, self._bounds, self._depths, self._kinds)
        _check(np.frombuffer(joined, np.uint8), ends, keys, plain)
        if not _is_utf8(joined):
            plain &= np.fromiter(map(_is_utf8, records), np.bool_, len(records))
        return plain


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@numba.njit(nogil=True, cache=True)
def _hash(text: NDArray[np.uint8], begin: int, end: int, depth: int) -> np.uint64:
    """FNV-1a of a key and of the level that it stands at."""
    value = _FNV_BASIS ^ np.uint64(depth)
    for i in range(begin, end):
        value = (value ^ np.uint64(text[i])) * _FNV_PRIME
    return value ^ (value >> np.uint64(32))


@numba.njit(nogil=True, cache=True)
def _fill(
    table: NDArray[np.int64], text: NDArray[np.uint8], bounds: NDArray[np.int64], depths: NDArray[np.int64]
) -> None:
    """Puts the number of each key at its place of an open-addressing table, whose size is a power of two."""
    mask = np.uint64(len(table) - 1)
    for key in range(len(depths)):
        place = _hash(text, bounds[key], bounds[key + 1], depths[key]) & mask
        while table[np.int64(place)] >= 0:
            place = (place + np.uint64(1)) & mask
        table[np.int64(place)] = key


@numba.njit(nogil=True, cache=True)
def _key(data: NDArray[np.uint8], begin: int, end: int, depth: int, keys: tuple) -> int:
    """The number of a key of the schema at a level; -1: nobody reads it."""
    table, text, bounds, depths, _ = keys
    mask = np.uint64(len(table) - 1)
    place = _hash(data, begin, end, depth) & mask
    key = table[np.int64(place)]
    while key >= 0:
        if depths[key] == depth and bounds[key + 1] - bounds[key] == end - begin:
            at = 0
            while at < end - begin and text[bounds[key] + at] == data[begin + at]:
                at += 1
            if at == end - begin:
                return int(key)
        place = (place + np.uint64(1)) & mask
        key = table[np.int64(place)]
    return -1


@numba.njit(nogil=True, cache=True)
def _check(
    data: NDArray[np.uint8],
    ends: NDArray[np.int64],
    keys: tuple,
    plain: NDArray[np.bool_],
) -> None:
    """Per payload whether it is plain: payload i ends before `ends[i]`, the next begins behind the newline there."""
    # Of each open bracket: of an object its level, of a list what it holds; -1 where nobody reads it.
    holds = np.empty(DEPTH_MAX + 1, np.int64)
    # By level, which of its first 64 keys the open node has had.
    seen = np.zeros(16, np.uint64)
    at = 0
    for i in range(len(ends)):
        plain[i] = _plain(data, at, ends[i], keys, holds, seen)
        at = ends[i] + 1


@numba.njit(nogil=True, cache=True)
def _plain(
    data: NDArray[np.uint8],
    at: int,
    end: int,
    keys: tuple,
    holds: NDArray[np.int64],
    seen: NDArray[np.uint64],
) -> bool:
    """Whether `data[at:end]` is one JSON object of the schema's types, with white space around it."""
    depth, objects, next_ = 0, np.uint64(0), _VALUE
    wanted = _NODES
    while at < end:
        c = data[at]
        if c == 32 or c == 10 or c == 13 or c == 9:
            at += 1
        elif c == _QUOTE and (next_ in (_KEY, _KEY_OR_CLOSE)):
            begin = at + 1
            at = _string(data, begin, end)
            next_ = _COLON_NEXT
            wanted = _ANYTHING
            if at >= 0 and holds[depth] >= 0:
                for j in range(begin, at - 1):
                    if data[j] == _BACKSLASH:
                        return False
                key = _key(data, begin, at - 1, holds[depth], keys)
                if key >= 0:
                    wanted = keys[4][key]
                    if key < 64:
                        bit = np.uint64(1) << np.uint64(key)
                        if seen[holds[depth]] & bit:
                            return False
                        seen[holds[depth]] |= bit
        elif c == _COLON and next_ == _COLON_NEXT:
            at += 1
            next_ = _VALUE
        elif c == _COMMA and next_ == _COMMA_OR_CLOSE:
            at += 1
            next_ = _VALUE
            if objects & np.uint64(1):
                next_ = _KEY
            else:
                wanted = max(holds[depth], 0)
        elif c in (_CLOSE_OBJECT, _CLOSE_LIST):
            in_object = (objects & np.uint64(1)) == np.uint64(1)
            fits = next_ == _COMMA_OR_CLOSE or next_ == (_KEY_OR_CLOSE if in_object else _VALUE_OR_CLOSE)
            if not fits or in_object != (c == _CLOSE_OBJECT):
                return False
            at += 1
            depth -= 1
            objects >>= np.uint64(1)
            next_ = _COMMA_OR_CLOSE if depth > 0 else _NOTHING
        elif next_ != _VALUE and next_ != _VALUE_OR_CLOSE:
            return False
        elif c == _OPEN_OBJECT or (c == _OPEN_LIST and depth > 0):
            depth += 1
            if depth > DEPTH_MAX:
                return False
            at += 1
            objects = (objects << np.uint64(1)) | np.uint64(c == _OPEN_OBJECT)
            holds[depth] = -1
            if c == _OPEN_OBJECT:
                next_ = _KEY_OR_CLOSE
                if wanted != _ANYTHING:
                    if wanted < _NODES or wanted >= _LIST:
                        return False
                    holds[depth] = wanted - _NODES
                    seen[wanted - _NODES] = np.uint64(0)
            else:
                next_ = _VALUE_OR_CLOSE
                if wanted != _ANYTHING:
                    if wanted < _LIST:
                        return False
                    wanted -= _LIST
                    holds[depth] = wanted
        elif depth == 0:
            return False
        else:
            begin = at
            at = _scalar(data, at, end)
            next_ = _COMMA_OR_CLOSE
            if at >= 0 and wanted != _ANYTHING and not _fits(data, begin, at, wanted):
                return False
        if at < 0:
            return False
    return next_ == _NOTHING


@numba.njit(nogil=True, cache=True)
def _fits(data: NDArray[np.uint8], begin: int, end: int, wanted: int) -> bool:
    """Whether the string, number or word `data[begin:end]` is what a field holds; a null always is."""
    c = data[begin]
    if c == 110:
        return True
    if c == _QUOTE:
        return wanted == _STRING
    if c == 116 or c == 102 or wanted >= _NODES or wanted == _STRING:
        return False
    if wanted == _NUMBER:
        return True
    negative = c == _MINUS
    value, digits = np.uint64(0), 0
    for i in range(begin + negative, end):
        if not 48 <= data[i] <= 57:
            return False
        digits += 1
        value = value * np.uint64(10) + np.uint64(data[i] - 48)
    if digits > 19 or (negative and value == 0):
        return False
    return bool(value <= _INT64_MAX + np.uint64(negative))


@numba.njit(nogil=True, cache=True)
def _string(data: NDArray[np.uint8], at: int, end: int) -> int:
    """Where the string that began before `at` is over, or -1."""
    while at < end:
        c = data[at]
        if c == _QUOTE:
            return at + 1
        if c < 32:
            return -1
        if c != _BACKSLASH:
            at += 1
        elif at + 1 < end and data[at + 1] == 117:  # \u
            unit = _code_unit(data, at, end)
            at += 6
            if 0xD800 <= unit < 0xDC00:
                unit = 0 if 0xDC00 <= _code_unit(data, at, end) < 0xE000 else -1
                at += 6
            if unit < 0 or 0xDC00 <= unit < 0xE000:
                return -1
        elif at + 1 < end and _escapable(data[at + 1]):
            at += 2
        else:
            return -1
    return -1


@numba.njit(nogil=True, cache=True)
def _escapable(c: int) -> bool:
    r"""Whether `c` may stand behind a backslash: one of " \ / b f n r t."""
    return c == 34 or c == 92 or c == 47 or c == 98 or c == 102 or c == 110 or c == 114 or c == 116


@numba.njit(nogil=True, cache=True)
def _code_unit(data: NDArray[np.uint8], at: int, end: int) -> int:
    r"""The code unit of the escape \uXXXX at `at`, or -1 where there is none."""
    if at + 6 > end or data[at] != _BACKSLASH or data[at + 1] != 117:
        return -1
    unit = 0
    for i in range(at + 2, at + 6):
        c = int(data[i])
        if 48 <= c <= 57:
            unit = unit * 16 + c - 48
        elif 97 <= (c | 32) <= 102:
            unit = unit * 16 + (c | 32) - 87
        else:
            return -1
    return unit


@numba.njit(nogil=True, cache=True)
def _scalar(data: NDArray[np.uint8], at: int, end: int) -> int:
    """Where the string, number or word that begins at `at` is over, or -1."""
    c = data[at]
    if c == _QUOTE:
        return _string(data, at + 1, end)
    if c == 116:
        return _word(data, at, end, b"true")
    if c == 102:
        return _word(data, at, end, b"false")
    if c == 110:
        return _word(data, at, end, b"null")
    return _number(data, at, end)


@numba.njit(nogil=True, cache=True)
def _word(data: NDArray[np.uint8], at: int, end: int, word: bytes) -> int:
    if at + len(word) > end:
        return -1
    for i in range(len(word)):
        if data[at + i] != word[i]:
            return -1
    return at + len(word)


@numba.njit(nogil=True, cache=True)
def _number(data: NDArray[np.uint8], at: int, end: int) -> int:
    begin = at
    if data[at] == _MINUS:
        at += 1
    digits = _digits(data, at, end)
    if digits == at or (data[at] == _ZERO and digits > at + 1):
        return -1
    at = digits
    if at < end and data[at] == _POINT:
        digits = _digits(data, at + 1, end)
        if digits == at + 1:
            return -1
        at = digits
    if at < end and (data[at] | 32) == 101:  # e or E
        at += 1
        digits_max = 2
        if at < end and (data[at] == _PLUS or data[at] == _MINUS):
            digits_max = 3 if data[at] == _MINUS else 2
            at += 1
        digits = _digits(data, at, end)
        if digits == at or digits > at + digits_max:
            return -1
        at = digits
    return at if at - begin <= NUMBER_BYTES_MAX else -1


@numba.njit(nogil=True, cache=True)
def _digits(data: NDArray[np.uint8], at: int, end: int) -> int:
    """Where the run of digits from `at` on is over."""
    while at < end and 48 <= data[at] <= 57:
        at += 1
    return at
