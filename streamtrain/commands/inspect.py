"""Tells what a model has learned, from where, and how big it is. Reads the log only; the daemon may be running."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

HELP = "what a model has learned, and from where"
EXAMPLES = """\
examples:
  streamtrain inspect model/
  streamtrain inspect model/ --json
  streamtrain inspect model/ --epochs 100 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", help="the epoch log's directory")
    parser.add_argument(
        "--epochs", type=int, default=10, metavar="N", help="newest epochs to list (default 10)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    import orjson

    from streamtrain.log.inspect import inspect

    found = inspect(arguments.dir, lineage=max(arguments.epochs, 0))
    if arguments.json:
        sys.stdout.write(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        sys.stdout.write("\n".join(_lines(found)) + "\n")
    return 0


def _lines(found: dict[str, Any]) -> list[str]:
    if found["epoch"] is None:
        return [f"{found['name']} ({found['model_id']}): an empty log"]
    lines = [
        f"{found['name']} ({found['model_id']})",
        f"epoch      {found['epoch']}, committed {_time(found['committed_at_ms'])}",
        f"samples    {found['samples']:,} learned in {found['steps']:,} steps, {found['bad_samples']:,} records refused",
        *_outside(found),
        f"event time up to {_time(found['watermark_ms'])}",
        f"log        {found['bytes'] / 1e6:,.1f} MB: {found['epochs']['count']} epochs, {len(found['bases'])} bases",
        "positions",
        *(f"  {partition}: {offset}" for partition, offset in sorted(found["positions"].items())),
        "tables",
        *(
            f"  {n}: {t['rows']:,} rows of dim {t['dim']}, {t['bytes'] / 1e6:,.1f} MB"
            for n, t in found["tables"].items()
        ),
    ]
    if found["lost"]:
        lines += ["lost: records that were never learned", *(_loss(loss) for loss in found["lost"])]
    lines.append("newest epochs")
    for epoch in found["lineage"]:
        span = epoch["event_time_ms"]
        events = "no samples" if span is None else f"events {_time(span[0])} to {_time(span[1])}"
        more = f", {epoch['quarantined_samples']:,} quarantined" if epoch["quarantined_samples"] else ""
        if epoch["restores"] is not None:
            more += f", restores epoch {epoch['restores']}, {epoch['undone_samples']:,} samples undone"
        lines.append(
            f"  {epoch['epoch']}: {epoch['samples']:,} samples, {epoch['bytes'] / 1e3:,.0f} kB, {events}{more}"
        )
    return lines


def _outside(found: dict[str, Any]) -> list[str]:
    """Samples that were read and are not in the model."""
    lines = []
    if found["quarantined_minibatches"]:
        lines.append(
            f"quarantine {found['quarantined_samples']:,} samples in {found['quarantined_minibatches']:,} minibatches"
        )
    if found["undone_samples"]:
        lines.append(f"undone     {found['undone_samples']:,} samples, by rollbacks")
    return lines


def _loss(loss: dict[str, Any]) -> str:
    to = "nothing: it is gone" if loss["to"] is None else loss["to"]
    when = f"before epoch {loss['epoch']}, noticed {_time(loss['at_ms'])}"
    return f"  {loss['partition']}: {loss['from']} to {to} ({loss['reason']}), {when}"


def _time(ms: int | None) -> str:
    return (
        "-"
        if ms is None
        else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ms / 1000)) + f".{ms % 1000:03d}Z"
    )
