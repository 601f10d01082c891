"""What of the speed of a training step is left end to end: Kafka, durable epochs, Redis, deltas, a follower.

    python -m benchmarks.end_to_end [--samples 800000] [--warm 400000] [--batch 5000] [--codec json arrow] [--load 0.8] [--json]

The work is that of `train_step`: 23 slots of one id, heavy-tailed over `--rows` rows, dim 18, Adagrad, 414-200-80-1 with Adam.
`train_step_samples_per_s` is the learner alone, on the same samples in memory. Rates are of what follows the first `--warm` samples: until
then most rows are new, and what is measured is how fast the system finds memory for them in three processes. The daemon learns all of them from a Kafka topic of 4 partitions, with one-second epochs, a Redis store, deltas and
`streamtrain follow`, all on this machine: by codec, `share_CODEC` is its rate against the learner's. Last, a producer sends at
`--load` of the rate that the daemon reached, and `freshness` tells how old events are when the follower first has them.

How to read it: the stages are shares of the wall clock, see `throughput`. Where broker, Redis, follower and others share the
cores of the daemon, `cores` is what is left for it, and `processor_share_CODEC` is what a busy machine disturbs least: samples by
processor time of the whole daemon, against those of the learner alone.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from benchmarks import freshness, throughput
from benchmarks.harness import FOLDER, Data, machine, parser_of, skip_without, streamtrain, tell
from benchmarks.step_data import HIDDEN, StepData, Work
from streamtrain.config import Job, load_job
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.minibatch import Minibatch, Minibatcher
from streamtrain.sources import TIME_UNKNOWN, Chunk
from streamtrain.training.learner import Learner
from tests.servers import KafkaServer, RedisServer

__all__ = ["options_of", "work_of"]

SLOTS, DIM = 23, 18
CODECS = ("json", "arrow")
_CHUNK = 4096
_ARROW_RECORD = 1000


def work_of(folder: Path, samples: int, rows: int, batch: int) -> Data:
    """Writes the samples as JSON lines, and the job that learns them."""
    work = Work(SLOTS, DIM, rows, batch, -(-samples // batch), 1)
    StepData.write(folder / "steps", work)
    data, names = StepData(folder / "steps"), [f"slot_{slot}" for slot in range(SLOTS)]
    lines = folder / "samples.jsonl"
    with lines.open("wb") as file:
        for step in range(work.steps):
            rows_of, labels = data.rows[step].tolist(), data.labels[step].tolist()
            file.writelines(
                orjson.dumps({"y": label, **dict(zip(names, ids))}, option=orjson.OPT_APPEND_NEWLINE)
                for ids, label in zip(rows_of, labels)
            )
    config = folder / "job.toml"
    config.write_text(
        "\n".join(
            [
                'name = "end_to_end"',
                "seed = 1",
                f'source = {{ kind = "files", paths = ["{lines}"] }}',
                f'log = {{ path = "{folder / "model"}" }}',
                f'model = {{ kind = "mlp", hidden = {list(HIDDEN)} }}',
                f"training = {{ batch_size = {batch} }}",
                f"tables.main = {{ dim = {DIM}, rows_max = {2 * rows} }}",
                '[schema]\nlabels = ["y"]\n[schema.slots]',
                *(f"{name} = {{}}" for name in names),
            ]
        )
        + "\n"
    )
    return Data("23 slots x 18", work.steps * batch, lines, lines, config)


def minibatches(job: Job, lines: Path) -> Iterator[Minibatch]:
    """All samples, decoded as the daemon would."""
    decoder = Decoder(job.sample_schema)
    minibatcher = Minibatcher(job.training.batch_size, linger_ms=1)
    records = lines.read_bytes().splitlines()
    for first in range(0, len(records), _CHUNK):
        part = records[first : first + _CHUNK]
        offsets = np.arange(first, first + len(part), dtype=np.int64)
        times = np.full(len(part), TIME_UNKNOWN)
        minibatcher.add(decoder.decode(Chunk("p", first, first + len(part), offsets, times, part)), 0.0)
        while (minibatch := minibatcher.take(0.0)) is not None:
            yield minibatch


def train_step_rates(samples: Data, warm: int) -> tuple[float, float]:
    """Samples a second of the learner alone after the first `warm`, by the clock and by processor time.

    Epochs are cut outside of both.
    """
    job = load_job(str(samples.config))
    learner = Learner.warm(job)
    learner.restore([learner.genesis({"p": 0}, "files")], sequential=True)
    seconds = processor_s = 0.0
    learned = counted = 0
    every = list(minibatches(job, samples.lines))
    for number, minibatch in enumerate(every):
        coming = every[number + 1].batch if number + 1 < len(every) else None
        begin, processor = time.perf_counter(), time.process_time()
        learner.learn(minibatch, partial(lambda batch: batch, coming))
        if learned >= warm:
            counted += minibatch.batch.size
            seconds += time.perf_counter() - begin
            processor_s += time.process_time() - processor
        learned += minibatch.batch.size
        if number % 20 == 19:
            learner.cut()
    return counted / seconds, counted / processor_s


def fill(kafka: KafkaServer, topic: str, codec: str, samples: Data) -> None:
    """Puts all samples into a new topic."""
    asyncio.run(kafka.create_topic(topic, throughput.PARTITIONS))
    if codec == "json":
        target = ("--kafka", kafka.bootstrap_servers, "--topic", topic)
        subprocess.run(streamtrain("produce", samples.lines, *target), check=True, capture_output=True)
    else:
        records = samples.lines.read_bytes().splitlines()
        parts = (records[at : at + _ARROW_RECORD] for at in range(0, len(records), _ARROW_RECORD))
        asyncio.run(kafka.produce(topic, [_arrow(part) for part in parts], batch_bytes=1 << 20))


def _arrow(records: Sequence[bytes]) -> bytes:
    batch = pa.RecordBatch.from_pylist([orjson.loads(record) for record in records])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; see the module."""
    about, folder = machine(), (FOLDER / "end_to_end").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    samples = work_of(folder, options.samples, options.rows, options.batch)
    alone, alone_a_core = train_step_rates(samples, options.warm)
    result: dict[str, Any] = {"samples": samples.samples, "batch": options.batch}
    result["train_step_samples_per_s"] = round(alone)
    result["train_step_samples_per_core_s"] = round(alone_a_core)
    for codec in options.codec:
        with KafkaServer() as kafka, RedisServer() as redis:
            topic = f"all-{codec}"
            fill(kafka, topic, codec, samples)
            source = {
                "kind": "kafka",
                "bootstrap_servers": kafka.bootstrap_servers,
                "topic": topic,
                "codec": codec,
            }
            found = throughput.learned(
                folder / codec, samples, source, options.batch, redis, {"kafka": kafka.pid}, options.warm
            )
        result[f"share_{codec}"] = round(found["samples_per_s"] / alone, 3)
        result[f"processor_share_{codec}"] = round(found["samples_per_core_s"] / alone_a_core, 3)
        result[codec] = found
    if options.load:
        rate = options.load * result["json"]["samples_per_s"]
        aged = freshness.measured(folder / "aged", samples, rate, options.seconds, 1.0, options.batch)
        result["freshness_p50_s"] = aged["event_to_visible_s"]["p50"]
        result["freshness_p99_s"] = aged["event_to_visible_s"]["p99"]
        result["freshness"] = aged
    shutil.rmtree(folder)
    return result | {"machine": about}


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("end_to_end", __doc__)
    parser.add_argument("--samples", type=int, default=800_000, help="in the topic (default: %(default)s)")
    parser.add_argument(
        "--warm", type=int, default=400_000, help="of these, before the clock runs (default: %(default)s)"
    )
    parser.add_argument("--rows", type=int, default=10_000_000, help="that ids are of (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=5000, help="samples a minibatch (default: %(default)s)")
    parser.add_argument(
        "--codec", nargs="+", choices=CODECS, default=list(CODECS), help="of the records (default: both)"
    )
    parser.add_argument(
        "--load",
        type=float,
        default=0.8,
        help="of the rate from JSON, for freshness; 0: not (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of the stream for freshness (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.warm < options.samples:
        parser.error("--warm must leave samples to measure")
    if options.load and "json" not in options.codec:
        parser.error("freshness is measured with JSON: add it to --codec, or say --load 0")
    return options


def main() -> None:
    options = options_of()
    skip_without("java", "mvn", "redis-server", "redis-cli", as_json=options.json)
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
