"""Follows an export directory as a serving process does, and tells each version as it becomes visible."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamtrain.serving import Follower

HELP = "follow the deltas as a serving process does"
EXAMPLES = """\
examples:
  streamtrain follow exports/
  streamtrain follow exports/ --json            one line a version
  streamtrain follow exports/ --register a      deltas stay until this one has them
  streamtrain follow exports/ --listen 127.0.0.1:9465   /metrics for Prometheus
  streamtrain follow exports/ --until 120       stop when epoch 120 is served
  echo '{"user_id": 7, "item_id": 3}' | streamtrain follow exports/ --predict
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", help="the export directory")
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output")
    parser.add_argument(
        "--until", type=int, metavar="EPOCH", help="stop when this epoch or a later one is served"
    )
    parser.add_argument(
        "--predict", action="store_true", help="score JSON lines from standard input, then stop"
    )
    parser.add_argument(
        "--register",
        metavar="NAME",
        help="have the exporter keep the deltas that this follower still needs; a name of its own",
    )
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="serve /metrics for Prometheus there (port 0: a free one)"
    )
    parser.add_argument(
        "--poll", type=float, default=0.1, metavar="S", help="seconds between looks (default 0.1)"
    )


def run(arguments: argparse.Namespace) -> int:
    import os
    import signal
    import threading

    from streamtrain.serving import Follower
    from streamtrain.supervisor import Supervisor

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    follower = Follower(arguments.dir, poll_s=arguments.poll, register=arguments.register)
    try:
        if arguments.predict:
            return _predict(follower)
        with _listening(follower, arguments):
            return _follow(follower, arguments, stop, Supervisor.of(os.environ))
    finally:
        follower.stop()


@contextmanager
def _listening(follower: Follower, arguments: argparse.Namespace) -> Iterator[None]:
    if arguments.listen is None:
        yield
        return
    from streamtrain.serving.metrics import serve_metrics

    with serve_metrics(follower, arguments.listen, arguments.register or "") as port:
        sys.stderr.write(f"streamtrain: metrics at port {port}\n")
        yield


def _follow(follower, arguments: argparse.Namespace, stop, supervisor) -> int:  # type: ignore[no-untyped-def]
    seen = None
    manifest = Path(arguments.dir) / "manifest.json"
    if not manifest.exists():
        sys.stderr.write(f"streamtrain: waiting for an export in {arguments.dir}\n")
    while not stop.is_set() and not manifest.exists():
        supervisor.tell("waiting for an export", ready=False, live=True)
        stop.wait(arguments.poll)
    while not stop.is_set():
        error = follower.status.last_error
        follower.poll()
        if follower.status.last_error not in (None, error):
            sys.stderr.write(f"streamtrain: {follower.status.last_error}\n")
        version = follower.version
        if version is not None and version.epoch != seen:
            seen = version.epoch
            _tell(follower, arguments.json)
        supervisor.tell(
            "waiting for a version" if seen is None else f"serving epoch {seen}",
            ready=seen is not None,
            live=True,
        )
        if arguments.until is not None and seen is not None and seen >= arguments.until:
            break
        stop.wait(arguments.poll)
    supervisor.stopping("stopping")
    return 0


def _tell(follower, as_json: bool) -> None:  # type: ignore[no-untyped-def]
    import orjson

    version, freshness = follower.version, follower.freshness.as_dict()
    lineage = version.lineage
    if as_json:
        line = orjson.dumps(
            {
                "epoch": version.epoch,
                "samples_total": lineage.samples_total,
                "committed_at_ms": lineage.committed_at_ms,
                "visible_at_ms": version.visible_at_ms,
                "event_time_ms": lineage.event_time_ms,
                "record_time_ms": lineage.record_time_ms,
                "positions": lineage.positions,
                "freshness": freshness,
            }
        ).decode()
    else:
        behind = version.visible_at_ms - lineage.committed_at_ms
        p99 = freshness["event_to_visible_p99_ms"]
        tail = "" if p99 is None else f", event to visible p99 {p99 / 1000:.2f} s"
        line = f"epoch {version.epoch}: {lineage.samples_total:,} samples, visible {behind} ms after its commit{tail}"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _predict(follower) -> int:  # type: ignore[no-untyped-def]
    """Scores standard input in bounded pieces; one JSON object by label a line."""
    import itertools

    import orjson

    from streamtrain.errors import BadSample, ExportError

    try:
        follower.wait_for(0, 10.0)
    except TimeoutError as error:
        raise ExportError(str(error)) from error
    labels = follower.model.layout.labels
    lines = (line for line in sys.stdin.buffer if line.strip())
    while piece := list(itertools.islice(lines, 1024)):
        try:
            samples = [orjson.loads(line) for line in piece]
        except orjson.JSONDecodeError as error:
            raise BadSample("json", f"standard input holds a line that is not JSON: {error}") from error
        for row in follower.predict(samples):
            sys.stdout.write(orjson.dumps(dict(zip(labels, row.tolist(), strict=True))).decode() + "\n")
    return 0
