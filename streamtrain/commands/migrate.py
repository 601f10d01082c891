"""Begins a new log with what a model has learned, under other slots, tables, dims or optimizers."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamtrain.migration.migrate import Migration

HELP = "go on with what a model has learned, under settings that it cannot change while it lives"
EXAMPLES = """\
examples:
  streamtrain migrate new.toml --from model/ --dry-run    what would be kept, moved, begun anew
  streamtrain migrate new.toml --from model/              writes the log at new.toml's log.path
  streamtrain migrate new.toml --from model/ --epoch 120  from an earlier epoch

model/ is only read, and its daemon may go on learning: the new model begins at model/'s newest epoch and reads on from
there. Then stop the old daemon and run the new job. To go back, run the old job again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", help="the new job's TOML file, with a log.path of its own"
    )
    parser.add_argument(
        "--from", dest="source", metavar="DIR", required=True, help="the old model's epoch log"
    )
    parser.add_argument("--epoch", type=int, metavar="N", help="the epoch to begin at; default: the newest")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    import orjson

    from streamtrain.config import load_job
    from streamtrain.log.reader import LogReader
    from streamtrain.migration.migrate import migrate, plan
    from streamtrain.training.committer import writer_name

    job = load_job(arguments.config)
    log = LogReader.open(arguments.source)
    migration = plan(job, log, arguments.epoch)
    model_id = None
    if not arguments.dry_run:
        model_id = migrate(job, log, migration, writer_name()).model.model_id
    if arguments.json:
        found = migration.summary() | {"path": job.log.path, "new_model_id": model_id}
        sys.stdout.write(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n")
        return 0
    sys.stdout.write("\n".join(_lines(migration)) + "\n")
    done = "nothing was written (--dry-run)" if model_id is None else f"{job.log.path} holds model {model_id}"
    sys.stdout.write(f"{done}; it begins at epoch {migration.epoch} of {arguments.source}\n")
    return 0


def _lines(migration: Migration) -> list[str]:
    dense = migration.dense
    lines = ["changes", *(f"  {change}" for change in migration.changes), "tables"]
    for table in migration.tables:
        left = f", {table.lost:,} left behind" if table.lost else ""
        waiting = f", {_FILTERS[table.filter]}" if table.filter else ""
        lines.append(
            f"  {table.table}: {_FATES[table.fate]}, {table.rows:,} rows carried over{left}{waiting}"
        )
    lines.append("dense parameters")
    for fate, names in (
        ("as they were", dense.kept),
        ("moved with their slots", dense.mapped),
        ("begun anew", dense.begun),
        ("dropped", dense.dropped),
    ):
        if names:
            lines.append(f"  {fate}: {', '.join(names)}")
    if dense.optimizer_begun:
        lines.append("  the optimizer's state begins anew")
    lines.append(f"{migration.samples_total:,} samples were learned before")
    return lines


_FATES = {
    "kept": "as it was",
    "changed": "rows changed to the new dim, optimizer or decay",
    "new": "new",
    "dropped": "dropped",
    "begun": "begun anew, because its ids stand for other rows now",
}

_FILTERS = {
    "kept": "ids without a row wait on",
    "begun": "ids without a row are counted anew",
}
