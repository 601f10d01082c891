"""What every source must do, run on Kafka and on files of each kind."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consumers.files import FileSettings, FileSource
from consumers.kafka import KafkaSettings, KafkaSource
from streamtrain.errors import OffsetOutOfRange
from streamtrain.samples.positions import PositionTracker
from streamtrain.sources import Chunk, Source, Span
from tests.servers import KafkaServer

RECORDS = 500
_numbers = itertools.count()
Make = Callable[..., Source]


async def _kafka(kafka: KafkaServer) -> Make:
    topic = f"contract-{next(_numbers)}"
    await kafka.create_topic(topic, 3)
    values = [json.dumps({"n": n}).encode() for n in range(RECORDS)]
    await kafka.produce(topic, values[:200], batch_bytes=1024)
    # Markers of transactions and aborted records leave offsets without a record.
    await kafka.transaction(topic, values[200:210], partition=1)
    await kafka.transaction(topic, [b"aborted"] * 5, partition=1, commit=False)
    await kafka.produce(topic, values[210:], batch_bytes=1024)

    def make(*, until_end: bool = True, **changes: Any) -> Source:
        settings = KafkaSettings(
            kind="kafka", bootstrap_servers=kafka.bootstrap_servers, topic=topic, fetch_wait_ms=10, **changes
        )
        return KafkaSource(settings, until_end=until_end)

    return make


def _files(folder: Path, kind: str) -> Make:
    bounds = [0, 120, 120, 121, RECORDS]
    for number, (first, stop) in enumerate(itertools.pairwise(bounds)):
        rows = [{"n": n} for n in range(first, stop)]
        path = folder / f"part-{number + 8}.{kind}"
        if kind == "parquet":
            table = pa.table({"n": pa.array([row["n"] for row in rows], pa.int64())})
            pq.write_table(table, path, row_group_size=70)
            continue
        # A blank line is a row without a record.
        text = "\n".join(json.dumps(row) + ("\n" if row["n"] % 50 == 7 else "") for row in rows).encode()
        path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)

    def make(*, until_end: bool = True, **changes: Any) -> Source:
        settings = FileSettings(kind="files", paths=[str(folder / f"*.{kind}")], **changes)
        source = FileSource(settings, until_end=until_end)
        source.use_columns(["n"])
        return source

    return make


@pytest.fixture(params=["jsonl", "jsonl.gz", "parquet", pytest.param("kafka", marks=pytest.mark.kafka)])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes sources of the same `RECORDS` records, numbered from 0."""
    if request.param == "kafka":
        return await _kafka(request.getfixturevalue("kafka"))
    return _files(tmp_path, request.param)


@asynccontextmanager
async def opened(source: Source, positions: Mapping[str, int] | None = None) -> Any:
    try:
        yield source, await source.start(positions)
    finally:
        await source.close()


async def read_all(source: Source, chunks_max: int | None = None) -> list[Chunk]:
    chunks: list[Chunk] = []
    async with asyncio.timeout(30):
        while len(chunks) != chunks_max and (chunk := await source.read()) is not None:
            chunks.append(chunk)
    return chunks


def numbers(chunks: Sequence[Chunk]) -> list[int]:
    found = []
    for chunk in chunks:
        if isinstance(chunk.records, pa.Table):
            found += chunk.records["n"].to_pylist()
        else:
            found += [json.loads(record)["n"] for record in chunk.records if record is not None]
    return found


def assert_well_formed(chunk: Chunk) -> None:
    assert chunk.first < chunk.next
    assert len(chunk.offsets) == len(chunk.times_ms) == len(chunk.records)
    assert all(before < after for before, after in itertools.pairwise(chunk.offsets.tolist()))
    assert all(chunk.first <= offset < chunk.next for offset in chunk.offsets.tolist())


async def test_every_record_comes_once_and_in_order_within_its_partition(make: Make) -> None:
    async with opened(make(chunk_records_max=37)) as (source, positions):
        chunks = await read_all(source)
    assert sorted(numbers(chunks)) == list(range(RECORDS))
    by_partition = defaultdict(list)
    for chunk in chunks:
        assert_well_formed(chunk)
        assert len(chunk.offsets) <= 37
        by_partition[chunk.partition].append(chunk)
    for partition, its in by_partition.items():
        assert its[0].first == positions.get(partition, 0)
        assert all(before.next == after.first for before, after in itertools.pairwise(its))
        assert numbers(its) == sorted(numbers(its))


async def test_the_end_is_said_again_and_again(make: Make) -> None:
    async with opened(make()) as (source, _):
        await read_all(source)
        assert [await source.read() for _ in range(3)] == [None] * 3


@pytest.mark.parametrize("seed", range(3))
async def test_resuming_anywhere_neither_loses_nor_repeats(make: Make, seed: int) -> None:
    generator = random.Random(seed)
    learned: list[int] = []
    positions: dict[str, int] | None = None
    for attempt in itertools.count():
        async with opened(make(chunk_records_max=generator.randint(5, 90)), positions) as (source, started):
            tracker = PositionTracker(positions or started, sequential=source.sequential)
            chunks = await read_all(source, None if attempt == 6 else generator.randint(0, 6))
        if attempt < 6 and chunks:
            # The last chunk is learned in part: a minibatch may end anywhere in it.
            chunks[-1] = _part(chunks[-1], generator)
        learned += numbers(chunks)
        tracker.advance([Span(c.partition, c.first, c.next, len(c.offsets)) for c in chunks])
        positions = tracker.positions
        if attempt == 6:
            break
    assert sorted(learned) == list(range(RECORDS)), f"seed {seed}"


def _part(chunk: Chunk, generator: random.Random) -> Chunk:
    count = generator.randint(0, len(chunk.offsets))
    next_offset = int(chunk.offsets[count - 1]) + 1 if count else chunk.first
    return Chunk(
        chunk.partition,
        chunk.first,
        next_offset,
        chunk.offsets[:count],
        chunk.times_ms[:count],
        chunk.records[:count],
    )


async def test_a_span_read_again_is_what_was_read(make: Make) -> None:
    async with opened(make(chunk_records_max=60)) as (source, _):
        chunks = await read_all(source)
    random.Random(1).shuffle(chunks)
    again = make(chunk_records_max=25)
    try:
        for chunk in chunks:
            whole = await again.read_span(chunk.partition, chunk.first, chunk.next)
            assert (whole[0].first, whole[-1].next) == (chunk.first, chunk.next)
            assert numbers(whole) == numbers([chunk])
            middle = (chunk.first + chunk.next) // 2
            halves = (
                await again.read_span(chunk.partition, chunk.first, middle) if middle > chunk.first else []
            )
            halves += await again.read_span(chunk.partition, middle, chunk.next)
            assert numbers(halves) == numbers([chunk])
    finally:
        await again.close()


async def test_a_span_that_is_not_there_is_out_of_range(make: Make) -> None:
    async with opened(make()) as (source, _):
        chunks = await read_all(source)
        last = chunks[-1]
        with pytest.raises(OffsetOutOfRange, match=r"again"):
            await source.read_span(last.partition, last.next - 1, 10_000)
        # A refused span leaves the source as it was.
        assert numbers(await source.read_span(last.partition, last.first, last.next)) == numbers([last])


async def test_what_is_not_read_is_not_buffered_without_bound(make: Make) -> None:
    async with opened(make(chunk_records_max=10, buffer_records_max=40)) as (source, _):
        async with asyncio.timeout(30):
            # The buffer wakes its producer, not a watcher: looking again is the only way.
            while source._handover.has_room():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert source._handover.records < 40 + 10
        assert sorted(numbers(await read_all(source))) == list(range(RECORDS))


async def test_cancelling_a_read_loses_nothing(make: Make) -> None:
    found: list[Chunk] = []
    async with opened(make(chunk_records_max=20, buffer_records_max=20)) as (source, _):
        async with asyncio.timeout(30):
            for patience in itertools.cycle(range(3)):
                reading = asyncio.ensure_future(source.read())
                for _ in range(patience):
                    await asyncio.sleep(0)
                reading.cancel()
                result: Any = (await asyncio.gather(reading, return_exceptions=True))[0]
                if result is None:
                    break
                if isinstance(result, Chunk):
                    found.append(result)
    assert sorted(numbers(found)) == list(range(RECORDS))


async def test_closing_twice_or_before_the_start_is_harmless(make: Make) -> None:
    never_started = make()
    await never_started.close()
    source = make(until_end=False, buffer_records_max=5)
    await source.start(None)
    await source.read()
    await source.close()
    await source.close()
