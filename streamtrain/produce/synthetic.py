"""A synthetic click stream that moves: new items appear, items rise and fall, tastes turn.

It is a function of its seed and settings alone: sample n is the same in every run. What changes with time changes
with the sample's number, so a model that stops learning falls behind, by how much depends on `drift` and
`new_items_per_1000`, and not on how fast the stream is played.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamtrain.produce.records import Message, messages_of

__all__ = ["SYNTHETIC_SCHEMA", "SyntheticBlock", "SyntheticStream"]

SYNTHETIC_SCHEMA: dict[str, Any] = {
    "labels": ["click"],
    "event_time": "event_time_ms",
    "slots": {
        "user_id": {"type": "int"},
        "item_id": {"type": "int"},
        "category": {"type": "string"},
        "hour": {"type": "int"},
        "recent_items": {"kind": "sequence", "shares": "item_id", "length_max": 10, "pooling": "mean"},
        "price": {"kind": "dense"},
    },
}
"""The `[schema]` that reads the stream, as the TOML would hold it."""

BLOCK = 1000
"""Samples that are made together. A click enters the user's history with the next block."""
HISTORY = 10
"""Clicks that a sample's `recent_items` holds at most, oldest first."""
START_MS = 1_767_225_600_000
"""2026-01-01, the event time of sample 0 where event times are not the clock's."""

_DIM = 6
_CATEGORIES = 24
_SAMPLES_AN_HOUR = 5000
_ITEM_STEP = 1024
# The parts of the true logit. Chosen so that the best possible AUC is near 0.8, and that a third of what can be known
# is in what a single item or user is like, which only learning from the stream can tell.
_BIAS, _TASTE, _ITEM, _USER, _HOUR, _PRICE = -1.6, 1.1, 0.9, 0.5, 0.35, 0.3


@dataclass(frozen=True, slots=True)
class SyntheticBlock:
    """`BLOCK` samples.

    Attributes:
      first: the number of the first one.
      table: the fields, one row a sample.
      probabilities: `[BLOCK]` float64: how likely each click truly was. No model can do better.
    """

    first: int
    table: pa.Table
    probabilities: NDArray[np.float64]


class SyntheticStream:
    """Makes blocks of samples without end.

    Users and evergreen items are drawn from Zipf distributions. New items appear at a constant rate; most traffic goes
    to recent ones and leaves them as they age. A user's taste and an item's appeal turn slowly
    from one random direction into another.
    A click is drawn from the logistic of: base rate + user + item + taste times item vector + hour in category + price.

    Args:
      seed: decides everything.
      users: how many.
      items: how many there are at the beginning.
      new_items_per_1000: items that appear during 1000 samples.
      drift: 1: a taste turns into an unrelated one within about 400,000 samples, an item's appeal within 130,000;
        0: never.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        users: int = 5000,
        items: int = 2000,
        new_items_per_1000: float = 5.0,
        drift: float = 1.0,
    ) -> None:
        self._seed, self._first_items, self._new_items, self._drift = seed, items, new_items_per_1000, drift
        self._block = 0
        generator = np.random.default_rng([seed, 0])
        self._user_zipf, self._item_zipf = _zipf(users, 0.9), _zipf(items, 1.0)
        self._centres = generator.normal(size=(_CATEGORIES, _DIM))
        self._user_bias = generator.normal(size=users)
        self._tastes = generator.normal(size=(2, users, _DIM)) / math.sqrt(_DIM)
        self._hour_effects = generator.normal(size=(_CATEGORIES, 24))
        self._names = pa.array([f"category-{i:02d}" for i in range(_CATEGORIES)])
        self._items = _Items.empty()
        self._history = np.zeros((users, HISTORY), np.int64)
        self._history_length = np.zeros(users, np.int64)

    def next_block(self) -> SyntheticBlock:
        """The next `BLOCK` samples."""
        first = self._block * BLOCK
        generator = np.random.default_rng([self._seed, 1, self._block])
        self._block += 1
        number = first + np.arange(BLOCK)
        known = self._first_items + (number * (self._new_items / 1000)).astype(np.int64)
        self._items = self._items.grown(int(known[-1]), self._seed, self._centres)

        user = np.searchsorted(self._user_zipf, generator.random(BLOCK))
        item = self._draw_items(generator, known)
        hour = (number // _SAMPLES_AN_HOUR + 8) % 24
        logits = self._logits(number, user, item, hour)
        probabilities = 1 / (1 + np.exp(-logits))
        click = generator.random(BLOCK) < probabilities

        table = pa.table(
            {
                "event_time_ms": START_MS + number * (3_600_000 // _SAMPLES_AN_HOUR),
                "user_id": 1_000_000 + user,
                "item_id": 1 + item,
                "category": self._names.take(pa.array(self._items.category[item])),
                "hour": hour,
                "recent_items": self._recent(user),
                "price": np.round(self._items.price[item], 3),
                "click": click.astype(np.int64),
            }
        )
        self._remember(user[click], 1 + item[click])
        return SyntheticBlock(first, table, probabilities)

    def batches(
        self, samples: int | None, batch_size: int, *, live: bool, key: str | None = None
    ) -> Iterator[list[Message]]:
        """The stream as JSON messages.

        Args:
          samples: how many in all; None: without end.
          batch_size: how many at a time, at most.
          live: the event time is the clock's when the batch is made, instead of `START_MS` and counting.
          key: the field that is each message's key.
        """
        left = math.inf if samples is None else samples
        while left > 0:
            table = self.next_block().table.slice(0, int(min(left, BLOCK)))
            for at in range(0, len(table), batch_size):
                part = table.slice(at, batch_size)
                if live:
                    now = np.full(len(part), time.time_ns() // 1_000_000)
                    part = part.set_column(0, "event_time_ms", pa.array(now))
                yield messages_of(part, key)
            left -= len(table)

    def _draw_items(self, generator: np.random.Generator, known: NDArray[np.int64]) -> NDArray[np.int64]:
        evergreen = np.searchsorted(self._item_zipf, generator.random(BLOCK))
        # How many newer items there are: nearly flat over the newest, then a heavy tail (Lomax).
        age = (150 * (generator.random(BLOCK) ** (-1 / 1.2) - 1)).astype(np.int64)
        recent = known - 1 - np.minimum(age, known - 1)
        return np.where(generator.random(BLOCK) < 0.6, recent, evergreen)

    def _logits(
        self,
        number: NDArray[np.int64],
        user: NDArray[np.int64],
        item: NDArray[np.int64],
        hour: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        items = self._items
        turn = self._drift * number / 250_000
        first, second = self._tastes[0, user], self._tastes[1, user]
        taste = first * np.cos(turn)[:, None] + second * np.sin(turn)[:, None]
        swing = self._drift * number / 80_000
        appeal = items.appeal[0, item] * np.cos(swing) + items.appeal[1, item] * np.sin(swing)
        category = items.category[item]
        return (
            _BIAS
            + _USER * self._user_bias[user]
            + _ITEM * appeal
            + _TASTE * np.einsum("nd,nd->n", taste, items.vector[item])
            + _HOUR * self._hour_effects[category, hour]
            - _PRICE * (items.price[item] - 1.0)
        )

    def _recent(self, user: NDArray[np.int64]) -> pa.Array:
        lengths = self._history_length[user]
        kept = np.arange(HISTORY) >= HISTORY - lengths[:, None]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(self._history[user][kept]))

    def _remember(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> None:
        for user, item in zip(users.tolist(), items.tolist(), strict=True):
            row = self._history[user]
            row[:-1] = row[1:]
            row[-1] = item
        np.add.at(self._history_length, users, 1)
        np.minimum(self._history_length, HISTORY, out=self._history_length)


@dataclass(frozen=True, slots=True)
class _Items:
    """What items are like; `grown` adds more, always the same ones."""

    vector: NDArray[np.float64]
    appeal: NDArray[np.float64]
    category: NDArray[np.int64]
    price: NDArray[np.float64]

    @staticmethod
    def empty() -> _Items:
        return _Items(np.empty((0, _DIM)), np.empty((2, 0)), np.empty(0, np.int64), np.empty(0))

    def grown(self, count: int, seed: int, centres: NDArray[np.float64]) -> _Items:
        """At least `count` items."""
        items = self
        while len(items.price) < count:
            generator = np.random.default_rng([seed, 2, len(items.price) // _ITEM_STEP])
            category = generator.integers(0, _CATEGORIES, _ITEM_STEP)
            vector = 0.8 * centres[category] + 0.6 * generator.normal(size=(_ITEM_STEP, _DIM))
            items = _Items(
                np.concatenate([items.vector, vector]),
                np.concatenate([items.appeal, generator.normal(size=(2, _ITEM_STEP))], axis=1),
                np.concatenate([items.category, category]),
                np.concatenate([items.price, generator.lognormal(0.0, 0.5, _ITEM_STEP)]),
            )
        return items


def _zipf(count: int, exponent: float) -> NDArray[np.float64]:
    """`[count]` cumulative probabilities, the last 1, of ranks with weight rank^-exponent."""
    cumulative = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -exponent)
    return cumulative / cumulative[-1]
