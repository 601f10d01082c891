"""Feature ids: the 64-bit hash of (namespace, value). `docs/feature-ids.md` specifies it, forever.

XXH64 is Yann Collet's; the kernels follow his specification (github.com/Cyan4973/xxHash, doc/xxhash_spec.md). They
take arrays, fill arrays, hold no state and release the GIL, so decoding runs beside training.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numba
import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["cross_id", "feature_id", "hash_crosses", "hash_ints", "hash_strings", "namespace_key"]

INTEGER_SEED = 0x9E3779B97F4A7C15
"""Set apart from the namespace key so that the integer 5 and a string of its 8 bytes are different features."""

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)

# Every constant is a uint64: mixed with a signed integer, numba would go over to floats.
_0, _1, _7, _8, _11, _12, _18, _23, _27, _29, _31, _32, _33 = (
    np.uint64(n) for n in (0, 1, 7, 8, 11, 12, 18, 23, 27, 29, 31, 32, 33)
)


def namespace_key(namespace: str) -> int:
    """The seed of a namespace's ids: XXH64 of its UTF-8 bytes with seed 0."""
    return xxhash.xxh64_intdigest(namespace.encode(), seed=0)


def feature_id(namespace: str, value: int | str) -> int:
    """The id of one value.

    Raises:
      OverflowError: an integer beyond 64 bits with sign.
    """
    key = namespace_key(namespace)
    if isinstance(value, str):
        return xxhash.xxh64_intdigest(value.encode(), seed=key)
    data = operator.index(value).to_bytes(8, "little", signed=True)
    return xxhash.xxh64_intdigest(data, seed=key ^ INTEGER_SEED)


def cross_id(namespace: str, ids: Sequence[int]) -> int:
    """The id of one combination of feature ids, in the order of the cross slot's `of`."""
    data = b"".join(id.to_bytes(8, "little") for id in ids)
    return xxhash.xxh64_intdigest(data, seed=namespace_key(namespace))


def hash_ints(values: NDArray[np.int64], namespace: str) -> NDArray[np.uint64]:
    """The ids of `values`, `[N]` int64, as `[N]` uint64."""
    ids = np.empty(len(values), np.uint64)
    _ints(
        np.ascontiguousarray(values, np.int64).view(np.uint64),
        np.uint64(namespace_key(namespace) ^ INTEGER_SEED),
        ids,
    )
    return ids


def hash_strings(data: NDArray[np.uint8], offsets: NDArray[np.integer], namespace: str) -> NDArray[np.uint64]:
    """The ids of N strings as `[N]` uint64.

    Args:
      data: the UTF-8 bytes of all strings.
      offsets: `[N + 1]` int32 or int64, ascending: string i is `data[offsets[i]:offsets[i + 1]]`.
      namespace: the slot's.
    """
    ids = np.empty(len(offsets) - 1, np.uint64)
    _strings(data, offsets, np.uint64(namespace_key(namespace)), ids)
    return ids


def hash_crosses(
    values: Sequence[NDArray[np.uint64]],
    offsets: Sequence[NDArray[np.int64]],
    crossed: NDArray[np.int64],
    namespace: str,
) -> NDArray[np.uint64]:
    """The ids of all combinations, sample by sample, the last part's ids varying fastest.

    Args:
      values: of each of 2 to 4 parts, the ids of all samples.
      offsets: of each part, `[B + 1]`: sample i has `values[offsets[i]:offsets[i + 1]]`.
      crossed: `[B + 1]` int64: where each sample's combinations go. A sample gets either as many as its parts'
        lengths multiply to, or none.
      namespace: the cross slot's.
    """
    parts = len(values)
    starts = np.stack([o[:-1] for o in offsets])
    lengths = np.stack([np.diff(o) for o in offsets])
    # The parts stand one behind the other in one array, so that one kernel serves any number of them.
    shifts = np.cumsum([0] + [len(v) for v in values[:-1]])
    ids = np.empty(int(crossed[-1]), np.uint64)
    _crosses(
        np.concatenate(values),
        starts + shifts.reshape(parts, 1),
        lengths,
        crossed,
        np.uint64(namespace_key(namespace)),
        ids,
    )
    return ids


@numba.njit(inline="always")
def _rotate(x: np.uint64, bits: np.uint64) -> np.uint64:
    return (x << bits) | (x >> (np.uint64(64) - bits))


@numba.njit(inline="always")
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(lane + word * _P2, _31) * _P1


@numba.njit(inline="always")
def _avalanche(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> _33)) * _P2
    h = (h ^ (h >> _29)) * _P3
    return h ^ (h >> _32)


@numba.njit(inline="always")
def _merge(one: np.uint64, two: np.uint64, three: np.uint64, four: np.uint64) -> np.uint64:
    h = _rotate(one, _1) + _rotate(two, _7) + _rotate(three, _12) + _rotate(four, _18)
    for lane in (one, two, three, four):
        h = (h ^ _round(_0, lane)) * _P1 + _P4
    return h


@numba.njit(inline="always")
def _tail_word(h: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(h ^ _round(_0, word), _27) * _P1 + _P4


@numba.njit(inline="always")
def _little(data: NDArray[np.uint8], at: int, size: int) -> np.uint64:
    """`size` bytes from `at` as an unsigned little-endian number."""
    word = _0
    for i in range(size):
        word |= np.uint64(data[at + i]) << np.uint64(8 * i)
    return word


@numba.njit(nogil=True, cache=True)
def _ints(words: NDArray[np.uint64], seed: np.uint64, ids: NDArray[np.uint64]) -> None:
    """Fills `ids[i]` with XXH64 of the 8 little-endian bytes of `words[i]`."""
    for i in range(len(words)):
        ids[i] = _avalanche(_tail_word(seed + _P5 + _8, words[i]))


@numba.njit(nogil=True, cache=True)
def _strings(
    data: NDArray[np.uint8], offsets: NDArray[np.integer], seed: np.uint64, ids: NDArray[np.uint64]
) -> None:
    """Fills `ids[i]` with XXH64 of `data[offsets[i]:offsets[i + 1]]`."""
    for i in range(len(ids)):
        at, end = offsets[i], offsets[i + 1]
        size = np.uint64(end - at)
        if end - at >= 32:
            one, two, three, four = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
            while at + 32 <= end:
                one = _round(one, _little(data, at, 8))
                two = _round(two, _little(data, at + 8, 8))
                three = _round(three, _little(data, at + 16, 8))
                four = _round(four, _little(data, at + 24, 8))
                at += 32
            h = _merge(one, two, three, four)
        else:
            h = seed + _P5
        h += size
        while at + 8 <= end:
            h = _tail_word(h, _little(data, at, 8))
            at += 8
        if at + 4 <= end:
            h = _rotate(h ^ (_little(data, at, 4) * _P1), _23) * _P2 + _P3
            at += 4
        while at < end:
            h = _rotate(h ^ (np.uint64(data[at]) * _P5), _11) * _P1
            at += 1
        ids[i] = _avalanche(h)


@numba.njit(nogil=True, cache=True)
def _crosses(
    values: NDArray[np.uint64],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    crossed: NDArray[np.int64],
    seed: np.uint64,
    ids: NDArray[np.uint64],
) -> None:
    """Fills `ids[crossed[i]:crossed[i + 1]]` with the XXH64s of sample i's combinations.

    Args:
      values: the ids of all parts, one part behind the other.
      starts, lengths: `[parts, B]`, where in `values` a sample's ids of a part begin, and how many they are.
      crossed: `[B + 1]`.
      seed: the namespace's key.
      ids: `[crossed[B]]`; filled.
    """
    parts = starts.shape[0]
    word = np.empty(4, np.uint64)
    for i in range(starts.shape[1]):
        for n in range(crossed[i + 1] - crossed[i]):
            # The combination's number, read as a number whose digits are the parts' positions.
            rest = n
            for part in range(parts - 1, -1, -1):
                word[part] = values[starts[part, i] + rest % lengths[part, i]]
                rest //= lengths[part, i]
            if parts == 4:
                h = _merge(
                    _round(seed + _P1 + _P2, word[0]),
                    _round(seed + _P2, word[1]),
                    _round(seed, word[2]),
                    _round(seed - _P1, word[3]),
                )
                h += _32
            else:
                h = seed + _P5 + np.uint64(8 * parts)
                for part in range(parts):
                    h = _tail_word(h, word[part])
            ids[crossed[i] + n] = _avalanche(h)
