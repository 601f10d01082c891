"""Everything that reads bytes of others, given what no writer wrote: it is read, or refused by a typed error, in bounded memory.

Records as text are `test_fuzz.py`'s; here are the files of the log and of exports, jobs, Arrow records, answers of a
Redis and requests of HTTP clients. A failure prints the seed of the bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from streamtrain.config import HttpSettings, load_job
from streamtrain.errors import ConfigError, ExportError, LogError, StoreError
from streamtrain.http_guard import guarded, listening
from streamtrain.log.container import DIGEST_OFFSET
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.model import ModelDescription
from streamtrain.log.sealed import seal, unseal
from streamtrain.samples.arrow_codec import ArrowCodec
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.schema import Schema
from streamtrain.serving.manifest import Entry, Manifest
from streamtrain.sources import Chunk
from streamtrain.store.redis_store import RedisStore
from streamtrain.store.settings import StoreSettings
from streamtrain.store.store import StoreDescription
from tests.reference_log import append_epochs
from tests.unit.test_config import MINIMAL

FLAT = Schema.model_validate({"labels": ["click"], "slots": {"user": {}, "tags": {"type": "string"}}})
NUMBERS = [
    b"-1",
    b"0",
    b"1e999",
    b"99999999999999999999",
    b"4294967296",
    b"null",
    b'"x"',
    b"[]",
    b"{}",
    b"true",
]


def mutants(good: bytes, count: int, seed: int, begin: int = 0) -> Iterator[tuple[int, bytes]]:
    """`good` with some bytes of it from `begin` on changed, removed, doubled, or a number in it made another."""
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        data = bytearray(good)
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(begin, len(data)) if len(data) > begin + 1 else begin
            match rng.randrange(6):
                case 0:
                    data[at : at + 1] = rng.randbytes(1)
                case 1:
                    del data[at : at + rng.choice((1, 8, 200))]
                case 2:
                    data[at:at] = data[at : at + rng.choice((1, 8, 200))]
                case 3:
                    data[at : at + 4] = rng.choice(
                        (b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0" * 4, b"\0\0\0\x80")
                    )
                case 4:
                    digits = [i for i in range(begin, len(data)) if 48 <= data[i] <= 57]
                    if digits:
                        at = rng.choice(digits)
                        data[at : at + 1] = rng.choice(NUMBERS)
                case 5:
                    del data[max(begin, at) :]
        yield number, bytes(data)


def refuses(
    read: Callable[[bytes], object],
    good: bytes,
    allowed: tuple[type[Exception], ...],
    count: int,
    begin: int = 0,
) -> int:
    """Reads mutants; returns how many were refused. Anything that is not allowed fails, and so does a lot of memory."""
    refused = 0
    for seed, data in mutants(good, count, 1, begin):
        tracemalloc.start()
        try:
            read(data)
        except allowed:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"mutant {seed} made {error!r}: {data[:200]!r}") from error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 64 << 20, f"mutant {seed} took {peak} bytes"
    return refused


@pytest.fixture
def epoch(tmp_path: Path) -> tuple[EpochLog, Path]:
    log = EpochLog.create(tmp_path / "log", "clicks", {"seed": 1})
    append_epochs(log, 3)
    return log, log.epoch_path(2)


def resealed(data: bytes) -> bytes:
    """With the digest that this content has: as one who means harm would write it."""
    zeroed = data[:DIGEST_OFFSET] + b"0" * 64 + data[DIGEST_OFFSET + 64 :]
    return data[:DIGEST_OFFSET] + hashlib.sha256(zeroed).hexdigest().encode() + data[DIGEST_OFFSET + 64 :]


@pytest.mark.parametrize("means_harm", [False, True])
def test_an_epoch_record_is_read_or_refused(epoch: tuple[EpochLog, Path], means_harm: bool) -> None:
    log, path = epoch
    good = path.read_bytes()

    def read(data: bytes) -> None:
        path.chmod(0o644)
        path.write_bytes(resealed(data) if means_harm else data)
        log.read(2)

    read(good)
    refused = refuses(read, good, (LogError,), 400, begin=DIGEST_OFFSET + 64 if means_harm else 0)
    assert refused > 200


def test_a_model_description_is_read_or_refused(tmp_path: Path) -> None:
    good = ModelDescription.new("clicks", {"seed": 1, "tables": {"main": {"dim": 4}}}).to_json()
    refused = refuses(
        lambda d: ModelDescription.from_json(d, tmp_path / "model.json"), good, (LogError,), 500
    )
    assert refused > 400


@pytest.mark.parametrize("means_harm", [False, True])
def test_a_manifest_is_read_or_refused(tmp_path: Path, means_harm: bool) -> None:
    base = Entry(1, "v1", "", "ab" * 32, 100, 1, 1)
    good = Manifest("m", (base,), (Entry(2, "v2", "v1", "cd" * 32, 10, 2, 2),)).to_bytes()

    def read(data: bytes) -> None:
        if means_harm:
            try:
                document = unseal(data[: data.rindex(b',"digest"')] + b"}")
                data = seal(document)
            except (ValueError, TypeError):
                pass
        (tmp_path / "manifest.json").write_bytes(data)
        Manifest.read(tmp_path / "manifest.json")

    read(good)
    assert refuses(read, good, (ExportError,), 500) > 200


def test_a_job_is_read_or_refused(tmp_path: Path) -> None:
    def read(data: bytes) -> None:
        (tmp_path / "job.toml").write_bytes(data)
        load_job(tmp_path / "job.toml", {})

    read(MINIMAL.encode())
    assert refuses(read, MINIMAL.encode(), (ConfigError,), 120) > 60


def ipc(table: pa.Table, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def decoded(*records: bytes) -> list[str]:
    count = len(records)
    chunk = Chunk("t:0", 0, count, np.arange(count), np.zeros(count, np.int64), [*records])
    return [str(bad) for bad in Decoder(FLAT, "arrow").decode(chunk).bad]


def test_an_arrow_record_is_read_or_refused_in_bounded_memory() -> None:
    table = pa.table(
        {"click": [1, 0, 1], "user": [1, 2, 3], "tags": pa.array(["a", "b", "a"]).dictionary_encode()}
    )
    good = ipc(table)
    assert decoded(good) == []
    codec, pool = ArrowCodec(FLAT), pa.default_memory_pool()
    before = pool.bytes_allocated()
    for seed, data in mutants(good, 800, 3):
        rows = codec.decode([good]) if not data else None
        try:
            rows = codec.decode([data])
        except Exception as error:
            # What the codec raises of one record alone is that record's fault to the decoder.
            assert not isinstance(error, MemoryError), (seed, error)
        del rows
        assert pool.bytes_allocated() - before < 16 << 20, seed
    for seed, data in mutants(good, 60, 4):
        assert len(decoded(good, data or b"x", good)) <= 1, seed


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_an_arrow_record_that_would_unpack_to_all_memory_is_refused_unread(compression: str) -> None:
    pool = pa.default_memory_pool()
    bomb = ipc(pa.table({"click": np.zeros(8 << 20), "user": np.zeros(8 << 20, np.int64)}), compression)
    assert len(bomb) < 1 << 20
    before = pool.bytes_allocated()
    (told,) = decoded(bomb)
    assert "its buffers are compressed" in told
    assert pool.bytes_allocated() - before < 1 << 20
    in_dictionary = pa.table({"click": [1], "tags": pa.array(["x" * 100_000]).dictionary_encode()})
    assert "its buffers are compressed" in decoded(ipc(in_dictionary, compression))[0]


def test_an_arrow_record_that_claims_more_than_it_has_is_refused() -> None:
    good = ipc(pa.table({"click": [1, 0, 1], "user": [1, 2, 3]}))
    # Of a batch: its length, those of its columns, and those of its buffers.
    claims = [good.replace(struct.pack("<q", 3), struct.pack("<q", n)) for n in (4, 1 << 20, 1 << 40, -1)]
    claims += [good.replace(struct.pack("<q", 24), struct.pack("<q", n)) for n in (1 << 40, -24, 2**63 - 1)]
    assert all(claim != good for claim in claims)
    assert len(decoded(good, *claims, good)) == len(claims)


@asynccontextmanager
async def answering(make: Callable[[], bytes]) -> AsyncIterator[int]:
    """A server that reads something, and answers with what is made, until the client has had enough."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while asked := await reader.read(1 << 16):
                # Politely at first: else its answers would not be looked at.
                writer.write(b"+OK\r\n" if b"SETNAME" in asked else make())
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_what_is_no_redis_or_a_mad_one_is_a_typed_error() -> None:
    rng = random.Random(5)
    info = b"redis_version:7.2.4\r\nmaxmemory_policy:noeviction\r\nused_memory:1\r\nmaxmemory:0\r\n"
    good = b"$%d\r\n%s\r\n" % (len(info), info)
    answers = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$-5\r\n",
        b"*999999999999\r\n",
        b"*1\r\n" * 5000,
        b":12\r\n" * 50,
        b"+OK\r\n",
        b"-ERR \xff\xfe\r\n",
        b"$3\r\nabcdef\r\n",
        b"\x00" * 100,
        good,
        *(data for _, data in mutants(good, 25, 6)),
        *(rng.randbytes(50) + b"\r\n" for _ in range(10)),
    ]
    for answer in answers:
        async with answering(lambda answer=answer: answer) as port:  # type: ignore[misc]
            store = RedisStore(StoreSettings(url=f"redis://127.0.0.1:{port}", timeout_s=0.2, retries=0))
            try:
                with pytest.raises(StoreError):
                    await asyncio.wait_for(store.open(StoreDescription("m", {"t": (1, 1)}, 2)), 20)
            except BaseException as error:
                raise AssertionError(f"of {answer[:100]!r}: {error!r}") from error
            finally:
                await store.close()


async def test_what_is_no_http_leaves_the_server_serving() -> None:
    settings = HttpSettings(port=0, connection_timeout_s=5)
    good = b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nAuthorization: Basic eDp5\r\n\r\nabc"
    async with listening(guarded(settings), settings) as port:
        for seed, data in mutants(good, 150, 7):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(data)
                writer.write_eof()
                answer = await asyncio.wait_for(reader.read(), 30)
                assert not answer.startswith(b"HTTP/1.1 5"), (seed, data)
            except ConnectionError:
                pass
            finally:
                writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 404")
        writer.close()
