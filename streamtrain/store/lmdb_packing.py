"""Rows as the keys and values of the LMDB store's file. `docs/store.md` specifies both. No I/O here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from streamtrain.log.record import TableRows
from streamtrain.sparse.turns import tickets_of
from streamtrain.store.packing import ID_BYTES, value_dtype

__all__ = ["KEY_BYTES", "key_of", "keys_of", "pack", "unpack"]

# Tickets first, so that a part of their space lies together: ids in the order in which sweeps look at them (sparse/turns.py).
_KEY = np.dtype([("ticket", ">u4"), ("id", ">u8")])
KEY_BYTES = _KEY.itemsize
_GOLDEN = 0x9E3779B1  # 2^32 / golden ratio, odd


def keys_of(ids: NDArray[np.uint64]) -> list[bytes]:
    """The key of each id."""
    keys = np.empty(len(ids), _KEY)
    keys["ticket"], keys["id"] = tickets_of(ids), ids
    found: list[bytes] = keys.view(f"V{KEY_BYTES}").tolist()
    return found


def key_of(ticket: int) -> bytes:
    """What no key of an id with this ticket, or a larger one, is less than; for 2^32, no key at all."""
    return ticket.to_bytes(4, "big") if ticket < 1 << 32 else b"\xff" * (KEY_BYTES + 1)


def pack(rows: TableRows, part: slice) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each row in `part`, in the order of keys."""
    ids = np.array(rows.ids[part], np.uint64)
    order = np.lexsort((ids, tickets_of(ids)))
    packed = np.empty(len(ids), _packed(rows.weights.shape[1], rows.slots.shape[1]))
    packed["id"] = ids
    value = packed["value"]
    value["weights"], value["slots"] = rows.weights[part], rows.slots[part]
    value["count"], value["last_step"] = rows.counts[part], rows.last_steps[part]
    packed["check"] = _checks(packed)
    packed = packed[order]
    values = np.ascontiguousarray(_bytes_of(packed)[:, ID_BYTES:])
    blobs: list[bytes] = values.view(f"V{values.shape[1]}")[:, 0].tolist()
    return zip(keys_of(packed["id"]), blobs, strict=True)


def unpack(
    pairs: Sequence[tuple[bytes, bytes]], dim: int, slots: int
) -> tuple[NDArray[np.uint64], NDArray[np.void]]:
    """The ids (`[R]` uint64) and values (`[R]` of `value_dtype`) of keys and values as they lie in the file.

    Raises:
      ValueError: they are not what was packed.
    """
    packed = np.empty(len(pairs), _packed(dim, slots))
    values = _bytes_of(packed)[:, ID_BYTES:]
    blob = b"".join(value for _, value in pairs)
    if len(blob) != values.size:
        raise ValueError("values have other sizes than rows")
    values[:] = np.frombuffer(blob, np.uint8).reshape(values.shape)
    packed["id"] = np.frombuffer(b"".join(key for key, _ in pairs), _KEY)["id"]
    if not np.array_equal(_checks(packed), packed["check"]):
        raise ValueError("rows do not match their checksums")
    return packed["id"].astype(np.uint64), packed["value"]


def _packed(dim: int, slots: int) -> np.dtype[np.void]:
    return np.dtype([("id", "<u8"), ("value", value_dtype(dim, slots)), ("check", "<u4")])


def _bytes_of(packed: NDArray[np.void]) -> NDArray[np.uint8]:
    """The same memory, `[R, bytes a row]` uint8."""
    return packed.view(np.uint8).reshape(len(packed), packed.dtype.itemsize)


def _checks(packed: NDArray[np.void]) -> NDArray[np.uint32]:
    """By row, a sum of all its words, its id's included, each times an odd number of its place: no zeros pass for a row.

    A sum like this finds any one damaged word, and others but for one in 2^32 (Knuth, TAOCP 3, section 6.4).
    """
    words = np.ascontiguousarray(_bytes_of(packed)[:, :-4]).view("<u4")
    factors = np.arange(1, 2 * words.shape[1], 2, dtype=np.uint32) * np.uint32(_GOLDEN)
    return (words * factors).sum(axis=1, dtype=np.uint32) + np.uint32(_GOLDEN)
