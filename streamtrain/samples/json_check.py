"""Whether payloads are plain JSON: a strict check that owes nothing to the parser that comes after it.

Columnar JSON parsers are lenient in ways that change with their versions: Arrow's takes NaN, several documents in one
payload, broken UTF-8 and numbers without bound, as long as they stand in fields that nobody asked for. Only payloads
that pass here take the columnar way, so both ways give the same samples. Grammar: RFC 8259.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["join_plain"]

DEPTH_MAX = 60
"""Open brackets are kept in the bits of one word. Deeper records are decoded one by one."""

NUMBER_BYTES_MAX = 128
"""Numbers this short are finite where their exponent is negative or of at most two digits."""

_QUOTE, _BACKSLASH, _COMMA, _COLON, _MINUS, _PLUS, _POINT, _ZERO = (ord(c) for c in '"\\,:-+.0')
_OPEN_OBJECT, _CLOSE_OBJECT, _OPEN_LIST, _CLOSE_LIST = (ord(c) for c in "{}[]")

# What may come next, between two tokens.
_VALUE, _VALUE_OR_CLOSE, _KEY, _KEY_OR_CLOSE, _COLON_NEXT, _COMMA_OR_CLOSE, _NOTHING = range(7)


def join_plain(records: Sequence[bytes]) -> bytes | None:
    """The records as JSON lines, or None where one of them is not exactly one plain JSON object in valid UTF-8."""
    joined = b"\n".join(records)
    if not _is_utf8(joined):
        return None
    ends = np.cumsum(np.fromiter(map(len, records), np.int64, len(records)) + 1) - 1
    if not _all_plain(np.frombuffer(joined, np.uint8), ends):
        return None
    if joined.count(b"\n") >= len(records):
        # A plain payload has newlines between tokens only, where a space means the same.
        joined = b"\n".join([record.replace(b"\n", b" ") for record in records])
    return joined


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@numba.njit(nogil=True, cache=True)
def _all_plain(data: NDArray[np.uint8], ends: NDArray[np.int64]) -> bool:
    """Whether each payload is plain: payload i ends before `ends[i]`, the next begins behind the newline there."""
    at = 0
    for end in ends:
        if not _plain(data, at, end):
            return False
        at = end + 1
    return True


@numba.njit(nogil=True, cache=True)
def _plain(data: NDArray[np.uint8], at: int, end: int) -> bool:
    """Whether `data[at:end]` is one JSON object, with white space around it."""
    depth, objects, next_ = 0, np.uint64(0), _VALUE
    while at < end:
        c = data[at]
        if c == 32 or c == 10 or c == 13 or c == 9:
            at += 1
        elif c == _QUOTE and (next_ in (_KEY, _KEY_OR_CLOSE)):
            at = _string(data, at + 1, end)
            next_ = _COLON_NEXT
        elif c == _COLON and next_ == _COLON_NEXT:
            at += 1
            next_ = _VALUE
        elif c == _COMMA and next_ == _COMMA_OR_CLOSE:
            at += 1
            next_ = _KEY if objects & np.uint64(1) else _VALUE
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
            next_ = _KEY_OR_CLOSE if c == _OPEN_OBJECT else _VALUE_OR_CLOSE
        elif depth == 0:
            return False
        else:
            at = _scalar(data, at, end)
            next_ = _COMMA_OR_CLOSE
        if at < 0:
            return False
    return next_ == _NOTHING


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
