"""Fills a Kafka topic or a file with samples: from Parquet or JSON-lines files, or with a synthetic click stream."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamtrain.produce import Message, Sink

HELP = "files to Kafka, or the synthetic stream"
EXAMPLES = """\
examples:
  streamtrain produce clicks.parquet --kafka localhost:9092 --topic clicks --partitions 4 --key user_id
  streamtrain produce --synthetic --rate 2000 --kafka localhost:9092 --topic demo --partitions 4
  streamtrain produce --synthetic --count 100000 --output clicks.jsonl
  streamtrain produce clicks.jsonl --config job.toml      the topic and connection of a job's source

Records are JSON, one sample each, stamped with the time of sending. Kafka's producer is idempotent: nothing is
stored twice. Without --kafka, --config or --output the records go to standard output.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="FILE", nargs="*", type=Path, help="Parquet, or JSON lines (plain, .gz, .zst)"
    )
    parser.add_argument(
        "--synthetic", action="store_true", help="a click stream with new items and drifting tastes"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the synthetic stream (default 0)")
    parser.add_argument("--live", action="store_true", help="synthetic event times are the clock's")
    parser.add_argument("--kafka", metavar="BROKERS", help="bootstrap servers to send to")
    parser.add_argument("--topic", help="the topic; with --kafka")
    parser.add_argument(
        "--partitions", type=int, metavar="N", help="create the topic with N partitions where it is missing"
    )
    parser.add_argument(
        "--config", metavar="JOB", help="take servers, security and topic from a job's Kafka source"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="append lines to a file instead")
    parser.add_argument(
        "--key", metavar="FIELD", help="the field whose samples stay in one partition, in order"
    )
    parser.add_argument(
        "--rate", type=float, metavar="N", help="samples a second at most; default: as fast as it goes"
    )
    parser.add_argument("--count", type=int, metavar="N", help="stop after N samples")


def run(arguments: argparse.Namespace) -> int:
    import asyncio

    from streamtrain.errors import ConfigError

    if bool(arguments.files) == arguments.synthetic:
        raise ConfigError("name files to produce, or say --synthetic; one of the two")
    if arguments.kafka and not arguments.topic:
        raise ConfigError("--kafka needs --topic")
    for name in ("rate", "count", "partitions"):
        if (value := getattr(arguments, name)) is not None and value <= 0:
            raise ConfigError(f"--{name} {value:g}: must be above 0")
    try:
        count = asyncio.run(_produce(arguments))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    sys.stderr.write(f"streamtrain: produced {count} records\n")
    return 0


async def _produce(arguments: argparse.Namespace) -> int:
    from streamtrain.commands.progress import counting
    from streamtrain.produce import produce

    async with _sink(arguments) as sink:
        with counting("records") as progress:
            return await produce(
                _batches(arguments), sink, rate=arguments.rate, count_max=arguments.count, progress=progress
            )


def _batches(arguments: argparse.Namespace) -> Iterator[list[Message]]:
    from streamtrain.produce import SyntheticStream, batch_size_for, file_batches

    size = batch_size_for(arguments.rate)
    if arguments.synthetic:
        return SyntheticStream(arguments.seed).batches(
            arguments.count, size, live=arguments.live, key=arguments.key
        )
    return file_batches(arguments.files, size, arguments.key)


@contextlib.asynccontextmanager
async def _sink(arguments: argparse.Namespace) -> AsyncIterator[Sink]:
    from streamtrain.produce import LineSink

    if arguments.kafka or arguments.config:
        async with _kafka(arguments) as sink:
            yield sink
    elif arguments.output is not None:
        with arguments.output.open("ab") as file:
            yield LineSink(file)
    else:
        yield LineSink(sys.stdout.buffer)


@contextlib.asynccontextmanager
async def _kafka(arguments: argparse.Namespace) -> AsyncIterator[Sink]:
    from consumers.kafka.settings import KafkaConnection
    from streamtrain.config import load_job
    from streamtrain.errors import ConfigError
    from streamtrain.produce import create_topic, kafka_sink

    connection: KafkaConnection
    if arguments.config:
        connection = load_job(arguments.config).source
        if not isinstance(connection, KafkaConnection):
            raise ConfigError(f"{arguments.config}: its source is not Kafka")
    else:
        connection = KafkaConnection(bootstrap_servers=arguments.kafka)
    topic = arguments.topic or connection.topic  # type: ignore[attr-defined]
    if arguments.partitions is not None:
        await create_topic(connection, topic, arguments.partitions)
    async with kafka_sink(connection, topic) as sink:
        yield sink
