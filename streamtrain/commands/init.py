"""Writes a commented job for a Parquet or JSON-lines sample of your own; read it once, correct what it guessed, run it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "write a commented job for your own sample file"
EXAMPLES = """\
examples:
  streamtrain init clicks.parquet --label is_click > job.toml
  streamtrain init clicks.jsonl --event-time ts_ms --output job.toml
  streamtrain init clicks.jsonl --kafka broker:9092 --topic clicks --output job.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sample", metavar="SAMPLE", help="a Parquet file, or JSON lines (plain, .gz, .zst)")
    parser.add_argument(
        "--label", action="append", help="a field to predict; may be given again. Default: guessed"
    )
    parser.add_argument(
        "--event-time", help="the field with the event time in milliseconds. Default: guessed"
    )
    parser.add_argument("--kafka", metavar="BROKERS", help="read from Kafka instead of the file")
    parser.add_argument("--topic", help="the Kafka topic. Default: the sample's name")
    parser.add_argument(
        "--output", metavar="FILE", help="write there instead of standard output; never overwrites"
    )


def run(arguments: argparse.Namespace) -> int:
    from streamtrain.errors import ConfigError
    from streamtrain.starter import Choices, write_job

    text = write_job(
        Path(arguments.sample),
        Choices(arguments.label, arguments.event_time, arguments.kafka, arguments.topic),
    )
    if arguments.output is None:
        sys.stdout.write(text)
        return 0
    try:
        with Path(arguments.output).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{arguments.output} exists already; nothing was written") from error
    except OSError as error:
        raise ConfigError(f"cannot write {arguments.output}: {error.strerror}") from error
    sys.stderr.write(f"wrote {arguments.output}; next: streamtrain evaluate {arguments.output}\n")
    return 0
