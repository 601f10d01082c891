"""The synthetic stream, and rows on their way to be messages."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamtrain.errors import ConfigError
from streamtrain.produce import (
    SYNTHETIC_SCHEMA,
    LineSink,
    Message,
    SyntheticBlock,
    SyntheticStream,
    batch_size_for,
    file_batches,
    messages_of,
    produce,
)
from streamtrain.produce.synthetic import BLOCK, HISTORY
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.schema import Schema
from streamtrain.sources import TIME_UNKNOWN, Chunk


def flat(batches: Iterator[list[Message]]) -> list[bytes]:
    return [message.value for batch in batches for message in batch]


def test_the_stream_is_a_function_of_its_seed_whatever_the_batches() -> None:
    first = flat(SyntheticStream(3).batches(2500, 1000, live=False))
    assert first == flat(SyntheticStream(3).batches(2500, 7, live=False))
    assert len(first) == 2500
    assert first != flat(SyntheticStream(4).batches(2500, 1000, live=False))


def test_its_schema_decodes_every_sample() -> None:
    values = flat(SyntheticStream().batches(3000, 1000, live=False))
    offsets = np.arange(len(values))
    decoded = Decoder(Schema.model_validate(SYNTHETIC_SCHEMA)).decode(
        Chunk("p", 0, 3000, offsets, np.full(len(values), TIME_UNKNOWN), values)
    )
    assert (decoded.batch.size, decoded.bad) == (3000, ())
    assert decoded.batch.ids["recent_items"].values.size > 0
    assert (np.diff(decoded.batch.event_time_ms) > 0).all()


def test_a_history_holds_earlier_clicks_of_the_same_user_oldest_first() -> None:
    stream = SyntheticStream(users=50)
    clicked: dict[int, list[int]] = {}
    for _ in range(5):
        rows = stream.next_block().table.to_pylist()
        for row in rows:
            assert row["recent_items"] == clicked.get(row["user_id"], [])[-HISTORY:]
        for row in rows:
            if row["click"]:
                clicked.setdefault(row["user_id"], []).append(row["item_id"])


def test_new_items_appear_and_get_most_of_the_traffic() -> None:
    stream = SyntheticStream(items=1000, new_items_per_1000=50)
    blocks = [stream.next_block() for _ in range(40)]
    assert blocks[0].table["item_id"].to_numpy().max() <= 1050
    latest = blocks[-1].table["item_id"].to_numpy()
    assert latest.max() <= 3000
    assert (latest > 1000).mean() > 0.5


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of (positive, negative) pairs in the right order, counted by rank."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    positives = int(labels.sum())
    return float(
        (ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))
    )


def test_clicks_follow_their_probabilities_and_can_be_told_apart() -> None:
    stream = SyntheticStream(11)
    blocks = [stream.next_block() for _ in range(60)]
    clicks = np.concatenate([block.table["click"].to_numpy() for block in blocks])
    probabilities = np.concatenate([block.probabilities for block in blocks])
    assert abs(clicks.mean() - probabilities.mean()) < 0.01
    assert 0.75 < auc(clicks, probabilities) < 0.84


def test_what_was_true_at_first_is_worth_little_later_unless_nothing_drifts() -> None:
    worth = {}
    for drift in (0.0, 1.0):
        stream = SyntheticStream(5, drift=drift, new_items_per_1000=0)
        early = [stream.next_block() for _ in range(40)]
        skipped = [stream.next_block() for _ in range(120)]
        late = [stream.next_block() for _ in range(40)]
        # The simplest model that learns items: their click rate so far.
        scores = {name: _click_rates(blocks) for name, blocks in (("early", early), ("fresh", skipped[-40:]))}
        items = np.concatenate([block.table["item_id"].to_numpy() for block in late])
        clicks = np.concatenate([block.table["click"].to_numpy() for block in late])
        worth[drift] = auc(clicks, scores["fresh"][items]) - auc(clicks, scores["early"][items])
    assert worth[1.0] > 0.03
    assert abs(worth[0.0]) < 0.02


def _click_rates(blocks: Sequence[SyntheticBlock]) -> np.ndarray:
    items = np.concatenate([block.table["item_id"].to_numpy() for block in blocks])
    clicks = np.concatenate([block.table["click"].to_numpy() for block in blocks])
    seen, clicked = np.bincount(items, minlength=5000), np.bincount(items, clicks, minlength=5000)
    return (clicked + 4) / (seen + 20)


def test_a_live_stream_carries_the_time_at_which_it_is_made() -> None:
    batches = SyntheticStream().batches(None, 10, live=True)
    times = [json.loads(message.value)["event_time_ms"] for message in [*next(batches), *next(batches)]]
    assert times == sorted(times)
    now_ms = datetime.datetime.now(datetime.UTC).timestamp() * 1000
    assert abs(now_ms - times[-1]) < 60_000


def test_rows_become_json_that_samples_can_be_read_from() -> None:
    when = datetime.datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "id": pa.array([1, None], pa.int32()),
            "many": pa.array([[1, 2], []], pa.list_(pa.int64())),
            "when": pa.array([when, when], pa.timestamp("us", "UTC")),
            "local": pa.array([when.replace(tzinfo=None)] * 2, pa.timestamp("ms")),
            "amount": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(5, 2)),
            "text": pa.array(["ä", "b"]).dictionary_encode(),
            "raw": pa.array([b"x", None]),
        }
    )
    ms = 1767323045678
    first, second = (json.loads(message.value) for message in messages_of(table))
    assert first == {"id": 1, "many": [1, 2], "when": ms, "local": ms, "amount": 1.5, "text": "ä", "raw": "x"}
    assert second == {"many": [], "when": ms, "local": ms, "text": "b"}


def test_the_key_is_the_text_of_its_field(tmp_path: Path) -> None:
    table = pa.table({"user": [7, 8], "n": [1, 2]})
    assert [message.key for message in messages_of(table, "user")] == [b"7", b"8"]
    with pytest.raises(ConfigError, match="no field 'nobody'"):
        messages_of(table, "nobody")
    path = tmp_path / "a.jsonl"
    path.write_text('{"user": 7}\n{"n": 1}\n')
    assert [m.key for batch in file_batches([path], 10, "user") for m in batch] == [b"7", None]
    path.write_text("[]\n")
    with pytest.raises(ConfigError, match="no JSON object"):
        list(file_batches([path], 10, "user"))


def test_files_are_read_one_after_the_other_with_all_their_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1, 2, 3], "extra": ["a", "b", "c"]}), tmp_path / "1.parquet")
    (tmp_path / "2.jsonl").write_text('{"n": 4}\n{"n": 5}\n')
    values = flat(file_batches([tmp_path / "1.parquet", tmp_path / "2.jsonl"], 2))
    assert [orjson.loads(value)["n"] for value in values] == [1, 2, 3, 4, 5]
    assert orjson.loads(values[0])["extra"] == "a"


async def test_lines_are_whole_and_counted() -> None:
    file = io.BytesIO()
    counts: list[int] = []
    batches = SyntheticStream().batches(None, batch_size_for(None), live=False)
    written = await produce(batches, LineSink(file), count_max=1500, progress=counts.append)
    assert (written, counts) == (1500, [1000, 1500])
    lines = file.getvalue().splitlines()
    assert lines == flat(SyntheticStream().batches(1500, BLOCK, live=False))


async def test_a_rate_is_kept_by_waiting_before_a_batch_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    now = asyncio.get_running_loop().time()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now + sum(waited))

    async def sleep(delay: float) -> None:
        waited.append(delay)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    batches = iter([[Message(None, b"{}")] * 10 for _ in range(5)])
    assert await produce(batches, LineSink(io.BytesIO()), rate=20) == 50
    # Also before the end is noticed: the next batch's turn comes when these are paid for.
    assert sum(waited) == pytest.approx(2.5)
    assert len(waited) == 5


@pytest.mark.parametrize(("rate", "size"), [(None, 1000), (1.0, 1), (2000.0, 40), (1e9, 1000)])
def test_a_limited_rate_is_made_in_small_batches(rate: float | None, size: int) -> None:
    assert batch_size_for(rate) == size


def test_a_reader_that_goes_away_ends_producing_without_words() -> None:
    command = [sys.executable, "-m", "streamtrain", "produce", "--synthetic", "--count", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as producing:
        assert producing.stdout is not None and producing.stderr is not None
        assert json.loads(producing.stdout.readline())
        producing.stdout.close()
        said = producing.stderr.read()
    assert (producing.returncode, said) == (0, b"")
