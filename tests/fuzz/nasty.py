"""Records as a broken or hostile producer would write them. Each kind says whether it must be learned or refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

__all__ = ["KINDS", "SCHEMA", "good", "mutated"]

SCHEMA: dict[str, Any] = {
    "labels": ["click"],
    "event_time": "time_ms",
    "slots": {
        "user": {},
        "item": {"type": "string"},
        "pair": {"kind": "cross", "of": ["user", "item"]},
        "recent": {
            "kind": "sequence",
            "shares": "item",
            "type": "string",
            "length_max": 5,
            "pooling": "mean",
        },
        "age": {"kind": "bucket", "boundaries": [18.0, 30.0, 50.0]},
        "price": {"kind": "dense"},
    },
}

_BELOW_LIMIT, _ABOVE_LIMIT = 300_000, (1 << 20) + 1


def _sample(rng: random.Random, **changes: Any) -> dict[str, Any]:
    made = {
        "user": rng.randrange(-(2**40), 2**40),
        "item": f"i{rng.randrange(1000)}",
        "recent": [f"i{rng.randrange(1000)}" for _ in range(rng.randrange(8))],
        "age": rng.uniform(0, 90),
        "price": rng.gauss(0, 3),
        "click": rng.randrange(2),
        "time_ms": 1_700_000_000_000 + rng.randrange(10**9),
    }
    return made | changes


def good(rng: random.Random, **changes: Any) -> bytes:
    """A sample, with these values instead of its own."""
    return json.dumps(_sample(rng, **changes)).encode()


def mutated(rng: random.Random) -> bytes:
    """A sample with a few bytes changed, inserted or removed: it may be learned or refused, but nothing may break."""
    data = bytearray(good(rng))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data))
        choice = rng.randrange(3)
        if choice == 0:
            data[at] = rng.randrange(256)
        elif choice == 1:
            data[at:at] = rng.randbytes(rng.randrange(1, 4))
        elif len(data) > 8:
            del data[at : at + rng.randrange(1, 4)]
    return bytes(data)


def _literal(field: str, text: str) -> Callable[[random.Random], bytes]:
    """A sample with a value that `json.dumps` would not write."""
    return lambda rng: good(rng, **{field: "@"}).replace(b'"@"', text.encode("utf-8", "surrogatepass"))


def _wrong(field: str) -> Callable[[random.Random], bytes]:
    """A sample with a value of another type."""
    fitting = {"user": int, "item": str, "recent": list, "age": (int, float), "price": (int, float)}
    values = [1.5, "x", True, {"a": 1}, [[1]], ["a", 1], 7]

    def make(rng: random.Random) -> bytes:
        is_one = fitting[field]
        unfit = [
            v for v in values if isinstance(v, bool) or not isinstance(v, is_one) or v in ([[1]], ["a", 1])
        ]
        return good(rng, **{field: rng.choice(unfit)})

    return make


def _deep(depth: int, field: str) -> Callable[[random.Random], bytes]:
    return _literal(field, "[" * depth + "]" * depth)


def _doubled(rng: random.Random) -> bytes:
    """Of a key given twice the last counts: the first one is wrong."""
    return b'{"user": "no number", "click": 77, ' + good(rng)[1:]


def _truncated(rng: random.Random) -> bytes:
    whole = good(rng)
    return whole[: rng.randrange(1, len(whole))]


KINDS: dict[str, tuple[bool, Callable[[random.Random], bytes | None]]] = {
    # Odd, but samples.
    "white_space": (True, lambda rng: b" \t\r\n" + good(rng) + b"\n "),
    "unknown_field": (True, lambda rng: good(rng, other={"a": [1, None, "x"] * 9})),
    "duplicate_keys": (True, _doubled),
    "nested_50_unread": (True, _deep(50, "other")),
    "nested_500_unread": (True, _deep(500, "other")),
    "int_min": (True, lambda rng: good(rng, user=-(2**63))),
    "int_max": (True, lambda rng: good(rng, user=2**63 - 1)),
    "long_string": (True, lambda rng: good(rng, item="y" * _BELOW_LIMIT)),
    "long_list": (True, lambda rng: good(rng, recent=["a"] * 30_000)),
    "unicode": (True, lambda rng: good(rng, item="\u00e9\u4e2d\U0001f600\x00")),
    "absent_features": (True, lambda rng: b'{"click": 1, "time_ms": 5}'),
    # None of these is one.
    "null": (False, lambda rng: None),
    "empty": (False, lambda rng: b""),
    "white_only": (False, lambda rng: b" \n\t "),
    "zeros": (False, lambda rng: bytes(rng.randrange(1, 5000))),
    "noise": (False, lambda rng: b"\x00" + rng.randbytes(rng.randrange(1, 500))),
    "truncated": (False, _truncated),
    "byte_order_mark": (False, lambda rng: b"\xef\xbb\xbf" + good(rng)),
    "utf_16": (False, lambda rng: good(rng).decode().encode("utf-16")),
    "two_documents": (False, lambda rng: good(rng) + good(rng)),
    "two_lines": (False, lambda rng: good(rng) + b"\n" + good(rng)),
    "not_an_object": (False, lambda rng: rng.choice([b"[]", b"1", b'"x"', b"null", b"[" + good(rng) + b"]"])),
    "invalid_utf_8": (False, lambda rng: good(rng, item="@").replace(b"@", b"\xff\xfe")),
    "cut_utf_8": (False, lambda rng: good(rng, item="@").replace(b"@", b"\xe4\xb8")),
    "surrogate": (False, lambda rng: good(rng, item="@").replace(b"@", b"\\ud800")),
    "control_character": (False, lambda rng: good(rng, item="@").replace(b"@", b"\x01")),
    "nan": (False, _literal("price", "NaN")),
    "infinity": (False, _literal("price", "-Infinity")),
    "nan_label": (False, _literal("click", "NaN")),
    "overflow": (False, _literal("price", "1e400")),
    "huge_float_int": (False, _literal("price", "9" * 400)),
    "float32_overflow": (False, lambda rng: good(rng, price=1e39)),
    "huge_int": (False, lambda rng: good(rng, user=rng.choice([2**63, -(2**63) - 1, 10**30]))),
    "longest_int": (False, _literal("user", "7" * 20_000)),
    "deep_2000": (False, _deep(2000, "other")),
    "deep_100000": (False, _deep(100_000, "recent")),
    "deep_open": (False, lambda rng: b'{"a":' * 50_000),
    "wrong_user": (False, _wrong("user")),
    "wrong_item": (False, _wrong("item")),
    "wrong_recent": (False, _wrong("recent")),
    "wrong_price": (False, _wrong("price")),
    "null_in_list": (False, lambda rng: good(rng, recent=["a", None])),
    "label_out_of_range": (False, lambda rng: good(rng, click=rng.choice([2, -1, 1e300]))),
    "label_missing": (False, lambda rng: good(rng, click=None)),
    "label_text": (False, lambda rng: good(rng, click="1")),
    "time_text": (False, lambda rng: good(rng, time_ms="now")),
    "too_large": (False, lambda rng: good(rng, item="z" * _ABOVE_LIMIT)),
}
"""By name: whether it must be learned, and how it is made."""
