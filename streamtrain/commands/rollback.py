"""Returns to the model of an earlier epoch, by appending one more; stop the daemon first. Nothing is erased."""

from __future__ import annotations

import argparse
import sys

HELP = "return to the model of an earlier epoch"
EXAMPLES = """\
examples:
  streamtrain inspect model/ --epochs 100         which epochs there are
  streamtrain rollback model/ 120                 go on from epoch 120, without the samples learned since
  streamtrain rollback model/ 120 --positions epoch    go on from epoch 120 and learn them again

Learning the same samples again with the same settings gives the same bits: choose --positions epoch only where
something has been corrected since. A rollback can be rolled back.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", help="the epoch log's directory")
    parser.add_argument("epoch", metavar="EPOCH", type=int, help="the epoch whose model to return to")
    parser.add_argument(
        "--positions",
        choices=("current", "epoch"),
        default="current",
        help="where reading goes on: where it stands now, which skips what was learned since (default), "
        "or where it stood then, which learns it again",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    import orjson

    from streamtrain.log.epoch_log import EpochLog
    from streamtrain.log.rollback import rollback
    from streamtrain.training.committer import writer_name

    log = EpochLog.open(arguments.dir)
    record = rollback(log, arguments.epoch, arguments.positions, writer_name())
    if arguments.json:
        found = {
            "epoch": record.epoch,
            "restores": record.restores,
            "samples": record.samples_total,
            "undone_samples": record.undone_samples,
            "positions": dict(record.positions),
            "leaves": dict(record.leaves),
            "rows_restored": {name: len(rows.ids) for name, rows in record.tables.items()},
            "rows_removed": {name: len(rows.tombstones) for name, rows in record.tables.items()},
        }
        sys.stdout.write(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n")
        return 0
    then = "from where it stands now" if arguments.positions == "current" else "from where it stood then"
    sys.stdout.write(
        f"epoch {record.epoch} restores epoch {record.restores}: {record.samples_total:,} samples learned, "
        f"{record.undone_samples:,} undone; the next run reads on {then}\n"
    )
    return 0
