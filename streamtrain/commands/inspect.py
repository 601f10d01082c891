"""Tells what a model has learned, from where, and how big it is. Reads the log only; the daemon may be running."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from streamtrain.errors import ConfigError

HELP = "what a model has learned, and from where; --table looks into one table"
EXAMPLES = """\
examples:
  streamtrain inspect model/
  streamtrain inspect model/ --json
  streamtrain inspect model/ --epochs 100 --json
  streamtrain inspect model/ --table item                              histograms, collisions, rows by epoch
  streamtrain inspect model/ --table item --png item.png               the same as a picture
  streamtrain inspect model/ --table item --slot item_id --id 42 --nearest 10
  streamtrain inspect model/ --table item --id 0xc5f7048483c823a7      by feature id (docs/feature-ids.md)
  streamtrain inspect model/ --table item --sort count --top 20
  streamtrain inspect model/ --table item --movers 300 600             what became of its rows between two epochs
  streamtrain inspect model/ --table item --at 300 --parquet item.parquet
"""

_LISTED_MAX = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", help="the epoch log's directory; a daemon may be writing to it")
    parser.add_argument(
        "--epochs", type=int, default=10, metavar="N", help="newest epochs to list (default 10)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    table = parser.add_argument_group("one table")
    table.add_argument("--table", metavar="T", help="look into this embedding table")
    table.add_argument(
        "--at", type=int, metavar="EPOCH", help="as it was at this epoch (default: the newest)"
    )
    table.add_argument(
        "--png", metavar="FILE", help="draw the histograms and rates (needs streamtrain[analysis])"
    )
    table.add_argument("--slot", metavar="SLOT", help="--id is a value of this slot, not a feature id")
    table.add_argument(
        "--nearest", type=_listed, metavar="N", help="with --id: the N rows whose vectors are nearest"
    )
    table.add_argument(
        "--by", choices=("cosine", "dot"), default="cosine", help="what nearest means (default cosine)"
    )
    table.add_argument(
        "--top",
        type=_listed,
        default=20,
        metavar="N",
        help="rows to list with --sort and --movers (default 20)",
    )
    instead = table.add_mutually_exclusive_group()
    instead.add_argument(
        "--id", nargs="+", metavar="ID", help="one row; a cross slot takes a value for each of its parts"
    )
    instead.add_argument(
        "--sort", choices=("count", "norm", "last_step", "age"), help="rows, those with the largest first"
    )
    instead.add_argument(
        "--movers", nargs=2, type=int, metavar=("FROM", "TO"), help="compare two epochs of the log"
    )
    instead.add_argument("--csv", metavar="FILE", help="write all rows as CSV")
    instead.add_argument("--parquet", metavar="FILE", help="write all rows as Parquet")


def _listed(text: str) -> int:
    number = int(text)
    if not 1 <= number <= _LISTED_MAX:
        raise argparse.ArgumentTypeError(f"{number} is not from 1 to {_LISTED_MAX:,}")
    return number


def run(arguments: argparse.Namespace) -> int:
    import orjson

    if arguments.table is None:
        _check_table_is_not_needed(arguments)
        from streamtrain.log.inspect import inspect

        found = inspect(arguments.dir, lineage=max(arguments.epochs, 0))
        text = _lines(found)
    else:
        _check_options_fit(arguments)
        from streamtrain.commands.inspect_table import report
        from streamtrain.commands.inspect_text import lines

        found = report(arguments)
        text = list(lines(found))
    if arguments.json:
        sys.stdout.write(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        sys.stdout.write("\n".join(text) + "\n")
    return 0


def _check_table_is_not_needed(arguments: argparse.Namespace) -> None:
    for name in ("at", "png", "slot", "nearest", "id", "sort", "movers", "csv", "parquet"):
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name} looks into one table: add --table NAME")


def _check_options_fit(arguments: argparse.Namespace) -> None:
    mode = next((m for m in ("id", "sort", "movers", "csv", "parquet") if getattr(arguments, m)), None)
    if arguments.id is None and (arguments.slot is not None or arguments.nearest is not None):
        raise ConfigError(f"--{'slot' if arguments.slot is not None else 'nearest'} needs --id")
    if mode is not None and arguments.png is not None:
        raise ConfigError(f"--png draws the table as a whole: not with --{mode}")
    if arguments.movers is not None and arguments.at is not None:
        raise ConfigError("--movers names its epochs itself: not with --at")


def _lines(found: dict[str, Any]) -> list[str]:
    if found["epoch"] is None:
        return [f"{found['name']} ({found['model_id']}): an empty log"]
    lines = [
        f"{found['name']} ({found['model_id']})",
        *(line for move in found["migrated"] for line in _migrated(move)),
        f"epoch      {found['epoch']}, committed {_time(found['committed_at_ms'])}",
        f"samples    {found['samples']:,} learned in {found['steps']:,} steps, {found['bad_samples']:,} records refused",
        *_outside(found),
        f"event time up to {_time(found['watermark_ms'])}",
        f"log        {found['bytes'] / 1e6:,.1f} MB: {found['epochs']['count']} epochs, {len(found['bases'])} bases",
        "positions",
        *(
            f"  {partition}: {offset}" + (f" leaf {leaf}" if (leaf := found["leaves"].get(partition)) else "")
            for partition, offset in sorted(found["positions"].items())
        ),
        "tables",
        *(
            f"  {n}: {t['rows']:,} rows of dim {t['dim']}, {t['bytes'] / 1e6:,.1f} MB"
            for n, t in found["tables"].items()
        ),
        *(
            f"  {n}, admission filter: {f['entries']:,} entries, {f['bytes'] / 1e6:,.1f} MB"
            for n, f in found["filters"].items()
        ),
    ]
    if found["readers"]:
        lines += ["readers", *(_reader(reader) for reader in found["readers"])]
    if found["lost"]:
        lines += ["lost: records that were never learned", *(_loss(loss) for loss in found["lost"])]
    lines.append("newest epochs")
    for epoch in found["lineage"]:
        span = epoch["event_time_ms"]
        more = "" if span is None else f", events {_time(span[0])} to {_time(span[1])}"
        more += f", {epoch['quarantined_samples']:,} quarantined" if epoch["quarantined_samples"] else ""
        if epoch["restores"] is not None:
            more += f", restores epoch {epoch['restores']}, {epoch['undone_samples']:,} samples undone"
        lines.append(
            f"  {epoch['epoch']}: {epoch['samples']:,} samples, {epoch['bytes'] / 1e3:,.0f} kB{more}"
        )
    return lines


def _migrated(move: dict[str, Any]) -> list[str]:
    changes = [f"  {change}" for change in move["changes"]]
    return [f"migrated   from model {move['model_id']} as of its epoch {move['epoch']}", *changes]


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


def _reader(reader: dict[str, Any]) -> str:
    who = f"{reader['kind']}, pid {reader['pid']} on {reader['host']}"
    at = (
        "is to choose a base"
        if reader["epoch"] is None
        else f"epoch {reader['epoch']}, {reader['behind']} behind"
    )
    return f"  {reader['name']} ({who}): {at}, last seen {_time(reader['renewed_at_ms'])}"


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
