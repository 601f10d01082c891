"""The Kafka source against a real broker: what only a real broker does."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from consumers.kafka import KafkaSettings, KafkaSource
from streamtrain.errors import OffsetOutOfRange, PartitionMissing, SourceRecreated, SourceUnavailable
from streamtrain.sources import Chunk, DataLoss, Gap
from tests.servers import KafkaServer

pytestmark = pytest.mark.kafka
_numbers = itertools.count()


@pytest.fixture
def topic() -> str:
    """A topic name that no other test uses."""
    return f"source-{next(_numbers)}"


def settings(kafka: KafkaServer, topic: str, **changes: Any) -> KafkaSettings:
    quick = {"metadata_refresh_s": 0.3, "unavailable_after_s": 20.0, "mirror_interval_s": 0.05}
    return KafkaSettings(
        kind="kafka", bootstrap_servers=kafka.bootstrap_servers, topic=topic, **(quick | changes)
    )


@asynccontextmanager
async def source(
    kafka: KafkaServer, topic: str, *, until_end: bool = False, **changes: Any
) -> AsyncIterator[KafkaSource]:
    opened = KafkaSource(settings(kafka, topic, **changes), until_end=until_end)
    try:
        yield opened
    finally:
        await opened.close()


async def drain(source: KafkaSource) -> list[Chunk]:
    chunks = []
    async with asyncio.timeout(60):
        while (chunk := await source.read()) is not None:
            assert isinstance(chunk, Chunk), chunk
            chunks.append(chunk)
    return chunks


async def read_until(
    source: KafkaSource, enough: Callable[[list[bytes]], bool], values: list[bytes] | None = None
) -> list[bytes]:
    """Reads into `values` (a new list) until it is enough, or the source raises."""
    values = [] if values is None else values
    async with asyncio.timeout(60):
        while not enough(values):
            chunk = await source.read()
            assert isinstance(chunk, Chunk), chunk
            values.extend(chunk.records)  # type: ignore[arg-type]
    return values


def values_of(chunks: list[Chunk]) -> list[bytes | None]:
    return [value for chunk in chunks for value in chunk.records]


def losses_of(step: Chunk | DataLoss | None) -> tuple[Gap, ...]:
    assert isinstance(step, DataLoss), step
    return step.gaps


def messages(prefix: str, count: int) -> list[bytes]:
    return [f"{prefix}{i}".encode() for i in range(count)]


async def test_aborted_records_are_skipped_and_their_offsets_are_in_a_chunk(
    kafka: KafkaServer, topic: str
) -> None:
    await kafka.create_topic(topic)
    await kafka.transaction(topic, messages("a", 5))
    await kafka.transaction(topic, messages("b", 7), commit=False)
    await kafka.transaction(topic, messages("c", 3))
    await kafka.transaction(topic, messages("d", 4), commit=False)
    async with source(kafka, topic, until_end=True) as opened:
        await opened.start(None)
        chunks = await drain(opened)
    assert values_of(chunks) == messages("a", 5) + messages("c", 3)
    # Every record and every marker has an offset, also those that are not read.
    assert (chunks[0].first, chunks[-1].next) == (0, 5 + 7 + 3 + 4 + 4)
    assert all(before.next == after.first for before, after in itertools.pairwise(chunks))


async def test_reading_ends_where_nothing_but_aborted_records_is_left(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic)
    await kafka.transaction(topic, messages("x", 6), commit=False)
    async with source(kafka, topic, until_end=True) as opened:
        assert await opened.start(None) == {f"{topic}:0": 0}
        chunks = await drain(opened)
    assert (values_of(chunks), chunks[-1].next) == ([], 7)


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_every_compression_is_read(kafka: KafkaServer, topic: str, compression: str) -> None:
    await kafka.create_topic(topic)
    await kafka.produce(topic, messages("m", 300), compression=compression)
    async with source(kafka, topic, until_end=True) as opened:
        await opened.start(None)
        assert values_of(await drain(opened)) == messages("m", 300)


async def test_until_end_leaves_out_what_arrives_later(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic, 2)
    await kafka.produce(topic, messages("early", 10), partition=0)
    async with source(kafka, topic, until_end=True) as opened:
        await opened.start(None)
        await kafka.produce(topic, messages("late", 10), partition=0)
        chunks = await drain(opened)
        assert await opened.read() is None
    assert values_of(chunks) == messages("early", 10)
    assert chunks[-1].next == 10


async def test_new_partitions_are_read_from_their_beginning(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic)
    await kafka.produce(topic, messages("old", 3))
    async with source(kafka, topic) as opened:
        await opened.start(None)
        await read_until(opened, lambda values: len(values) == 3)
        await kafka.add_partitions(topic, 3)
        await kafka.produce(topic, messages("new", 4), partition=2)
        await kafka.produce(topic, messages("more", 2), partition=0)
        values = await read_until(opened, lambda values: len(values) == 6)
    assert sorted(values) == sorted(messages("new", 4) + messages("more", 2))


async def test_a_partition_that_the_log_does_not_know_is_read_from_its_beginning(
    kafka: KafkaServer, topic: str
) -> None:
    await kafka.create_topic(topic, 2)
    await kafka.produce(topic, messages("p0-", 4), partition=0)
    await kafka.produce(topic, messages("p1-", 4), partition=1)
    async with source(kafka, topic, until_end=True, start="latest") as opened:
        assert await opened.start({f"{topic}:0": 3}) == {f"{topic}:0": 3, f"{topic}:1": 0}
        assert sorted(values_of(await drain(opened))) == [b"p0-3", *messages("p1-", 4)]  # type: ignore[type-var]


async def test_a_new_model_starts_where_the_settings_say(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic)
    await kafka.produce(topic, messages("t", 3), timestamp_ms=1_000_000)
    await kafka.produce(topic, messages("u", 3), timestamp_ms=2_000_000)
    starts: list[tuple[Any, int]] = [
        ("earliest", 0),
        ("latest", 6),
        ({"timestamp_ms": 1_500_000}, 3),
        ({"timestamp_ms": 3_000_000}, 6),
    ]
    for start, offset in starts:
        async with source(kafka, topic, start=start) as opened:
            assert await opened.start(None) == {f"{topic}:0": offset}


async def test_a_deleted_unlearned_record_stops_the_start(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic)
    await kafka.produce(topic, messages("m", 10))
    await kafka.delete_records(topic, 0, 6)
    async with source(kafka, topic) as opened:
        with pytest.raises(OffsetOutOfRange, match="4 offsets that were never learned are gone"):
            await opened.start({f"{topic}:0": 2})
    async with source(kafka, topic, on_data_loss="skip", until_end=True) as opened:
        assert await opened.start({f"{topic}:0": 2}) == {f"{topic}:0": 6}
        assert losses_of(await opened.read()) == (Gap(f"{topic}:0", 2, 6, "retention"),)
        chunks = await drain(opened)
    assert (values_of(chunks), chunks[0].first, chunks[-1].next) == (messages("m", 10)[6:], 6, 10)


async def test_records_deleted_while_the_buffer_is_full_stop_the_reading(
    kafka: KafkaServer, topic: str
) -> None:
    await kafka.create_topic(topic)
    await kafka.produce(topic, messages("m", 2000), batch_bytes=1024)
    async with source(
        kafka,
        topic,
        buffer_records_max=10,
        chunk_records_max=10,
        partition_fetch_bytes_max=1024,
        fetch_bytes_max=1024,
    ) as opened:
        await opened.start(None)
        await opened.read()
        await kafka.delete_records(topic, 0, 1900)
        with pytest.raises(OffsetOutOfRange, match="were never learned are gone"):
            await drain(opened)


async def test_records_deleted_while_the_buffer_is_full_are_skipped_when_told_so(
    kafka: KafkaServer, topic: str
) -> None:
    await kafka.create_topic(topic)
    await kafka.produce(topic, messages("m", 2000), batch_bytes=1024)
    small = {"buffer_records_max": 10, "chunk_records_max": 10}
    tiny = {"partition_fetch_bytes_max": 1024, "fetch_bytes_max": 1024}
    async with source(kafka, topic, on_data_loss="skip", until_end=True, **small, **tiny) as opened:
        await opened.start(None)
        found = [await opened.read()]
        await kafka.delete_records(topic, 0, 1900)
        async with asyncio.timeout(60):
            while (step := await opened.read()) is not None:
                found.append(step)
    (at,) = [i for i, step in enumerate(found) if isinstance(step, DataLoss)]
    (gap,) = losses_of(found.pop(at))
    before, after = found[at - 1], found[at]
    assert isinstance(before, Chunk) and isinstance(after, Chunk)
    assert (gap.first, gap.next, gap.reason) == (before.next, after.first, "retention")
    assert (
        after.first == 1900
        and values_of([c for c in found[at:] if isinstance(c, Chunk)]) == messages("m", 2000)[1900:]
    )
    assert opened.lag_records() == {f"{topic}:0": 0}


async def test_a_shrunk_topic_is_read_from_its_beginning_when_told_so(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic, 2)
    await kafka.produce(topic, messages("m", 3), partition=0)
    await kafka.produce(topic, messages("n", 3), partition=1)
    async with source(kafka, topic, on_data_loss="skip", until_end=True) as opened:
        positions = {f"{topic}:0": 9, f"{topic}:1": 2, f"{topic}:2": 5}
        assert await opened.start(positions) == {f"{topic}:0": 0, f"{topic}:1": 2}
        assert losses_of(await opened.read()) == (
            Gap(f"{topic}:0", 9, 0, "shrunk"),
            Gap(f"{topic}:2", 5, None, "removed"),
        )
        assert sorted(values_of(await drain(opened))) == sorted([*messages("m", 3), b"n2"])  # type: ignore[type-var]


async def test_a_position_after_the_end_is_refused(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic)
    await kafka.produce(topic, messages("m", 3))
    async with source(kafka, topic) as opened:
        with pytest.raises(OffsetOutOfRange, match="goes on at offset 9, but the topic ends at 3"):
            await opened.start({f"{topic}:0": 9})


async def test_a_missing_topic_is_named_and_not_created(kafka: KafkaServer, topic: str) -> None:
    async with source(kafka, topic) as opened:
        with pytest.raises(PartitionMissing, match=rf"topic '{topic}' does not exist.*--create"):
            await opened.start(None)
    async with kafka.admin() as admin:
        assert isinstance(admin, AIOKafkaAdminClient)
        assert topic not in await admin.list_topics()


async def test_positions_of_another_topic_are_refused(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic)
    async with source(kafka, topic) as opened:
        with pytest.raises(PartitionMissing, match="'clicks:0'"):
            await opened.start({"clicks:0": 3})


async def test_a_topic_recreated_between_two_runs_is_noticed(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic)
    await kafka.produce(topic, messages("m", 3))
    async with source(kafka, topic) as opened:
        await opened.start(None)
        identity = opened.identity
    assert identity
    await kafka.delete_topic(topic)
    await kafka.create_topic(topic)
    await kafka.produce(topic, messages("n", 30))
    async with source(kafka, topic) as opened:
        with pytest.raises(SourceRecreated, match="deleted and created again"):
            await opened.start({f"{topic}:0": 3}, identity)


async def test_a_recreated_topic_is_read_from_its_beginning_when_told_so(
    kafka: KafkaServer, topic: str
) -> None:
    """Noticed while reading, with fewer partitions; the next start, which knows the new identity, finds nothing lost."""
    await kafka.create_topic(topic, 2)
    await kafka.produce(topic, messages("m", 3), partition=0)
    await kafka.produce(topic, messages("m", 4), partition=1)
    async with source(kafka, topic, on_data_loss="skip", group_id=f"{topic}-group") as opened:
        await opened.start(None)
        await read_until(opened, lambda values: len(values) == 7)
        old = opened.identity
        await kafka.delete_topic(topic)
        await kafka.create_topic(topic)
        await kafka.produce(topic, messages("n", 30))
        async with asyncio.timeout(60):
            loss = await opened.read()
        assert losses_of(loss) == (
            Gap(f"{topic}:0", 3, 0, "recreated"),
            Gap(f"{topic}:1", 4, None, "recreated"),
        )
        assert isinstance(loss, DataLoss) and loss.identity == opened.identity != old
        assert await read_until(opened, lambda values: len(values) == 30) == messages("n", 30)
    async with source(kafka, topic, on_data_loss="skip", until_end=True) as opened:
        assert await opened.start({f"{topic}:0": 25}, loss.identity) == {f"{topic}:0": 25}
        assert values_of(await drain(opened)) == messages("n", 30)[25:]


async def test_a_topic_recreated_while_it_is_read_is_noticed(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic)
    await kafka.produce(topic, messages("m", 3))
    async with source(kafka, topic) as opened:
        await opened.start(None)
        await read_until(opened, lambda values: len(values) == 3)
        await kafka.delete_topic(topic)
        await kafka.create_topic(topic)
        with pytest.raises(SourceRecreated):
            await drain(opened)
        with pytest.raises(SourceRecreated):
            await opened.read()


async def test_a_topic_deleted_while_it_is_read_is_named(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic)
    async with source(kafka, topic) as opened:
        await opened.start(None)
        await kafka.delete_topic(topic)
        with pytest.raises(PartitionMissing, match=topic):
            await drain(opened)


async def test_positions_are_mirrored_to_the_group(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic, 2)
    await kafka.produce(topic, messages("m", 10))
    async with source(kafka, topic, group_id=f"{topic}-group") as opened:
        await opened.start(None)
        await opened.committed({f"{topic}:0": 2, f"{topic}:1": 0})
        await opened.committed({f"{topic}:0": 4, f"{topic}:1": 5})
    async with kafka.admin() as admin:
        offsets = await admin.list_consumer_group_offsets(f"{topic}-group")
    assert {tp.partition: entry.offset for tp, entry in offsets.items()} == {0: 4, 1: 5}
    assert opened.mirror_failures == 0


async def test_lag_counts_what_is_not_read_yet(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic)
    await kafka.produce(topic, messages("m", 10))
    async with source(kafka, topic, until_end=True, chunk_records_max=4) as opened:
        await opened.start(None)
        assert opened.lag_records() == {f"{topic}:0": 10}
        await opened.read()
        assert opened.lag_records() == {f"{topic}:0": 6}
        await drain(opened)
        assert opened.lag_records() == {f"{topic}:0": 0}


async def test_null_records_are_handed_on(kafka: KafkaServer, topic: str) -> None:
    await kafka.create_topic(topic)
    await kafka.produce(topic, [b"a", None, b"c"])
    async with source(kafka, topic, until_end=True) as opened:
        await opened.start(None)
        assert values_of(await drain(opened)) == [b"a", None, b"c"]


async def test_no_broker_is_reported_and_named() -> None:
    opened = KafkaSource(
        KafkaSettings(kind="kafka", bootstrap_servers="127.0.0.1:1", topic="clicks", unavailable_after_s=0.5)
    )
    why = r"Kafka at 127\.0\.0\.1:1 has not answered .*127\.0\.0\.1:1: ConnectionRefusedError"
    with pytest.raises(SourceUnavailable, match=why):
        await opened.start(None)
    await opened.close()
    await opened.close()


async def test_a_refused_certificate_or_password_is_told_as_such(kafka: KafkaServer) -> None:
    """The broker of the tests speaks neither TLS nor SASL; to a client both look like a refusal."""
    for patience_s in (2.0, 20.0):
        tls = KafkaSettings(
            kind="kafka",
            bootstrap_servers=kafka.bootstrap_servers,
            topic="t",
            security_protocol="SSL",
            unavailable_after_s=patience_s,
            request_timeout_s=0.75 * patience_s,
        )
        opened = KafkaSource(tls)
        with pytest.raises(SourceUnavailable) as told:
            await opened.start(None)
        await opened.close()
        if "(TimeoutError)" not in str(told.value):  # A broker without a core says nothing in time.
            break
    assert "Unable to bootstrap" not in str(told.value) and kafka.bootstrap_servers + ": " in str(told.value)


# aiokafka forgets the connection of a `bootstrap` that is cancelled while it asks; its finalizer closes it, and says so.
@pytest.mark.filterwarnings("ignore:Unclosed AIOKafkaConnection:ResourceWarning")
async def test_an_outage_is_reported_and_nothing_is_lost_or_repeated_after_it(
    kafka: KafkaServer, topic: str
) -> None:
    await kafka.create_topic(topic, 2)
    await kafka.produce(topic, messages("m", 4000))
    bounds: dict[str, Any] = {
        "buffer_records_max": 100,
        "chunk_records_max": 50,
        "partition_fetch_bytes_max": 4096,
    }
    async with source(kafka, topic, unavailable_after_s=1.0, **bounds) as opened:
        await opened.start(None)
        values = await read_until(opened, lambda values: len(values) >= 500)
        kafka.kill()
        try:
            with pytest.raises(SourceUnavailable, match="has not answered for 1 s"):
                await read_until(opened, lambda _: False, values)
        finally:
            kafka.start()
        await kafka.produce(topic, messages("n", 1000))
        async with asyncio.timeout(60):
            while len(values) < 5000:
                try:
                    chunk = await opened.read()
                except SourceUnavailable:
                    continue
                assert chunk is not None
                values.extend(chunk.records)  # type: ignore[arg-type]
    assert sorted(values) == sorted(messages("m", 4000) + messages("n", 1000))
    gc.collect()
