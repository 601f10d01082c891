"""One prequential pass: each sample of the source is scored before it is learned from. Nothing is written."""

from __future__ import annotations

import argparse
import sys

HELP = "one prequential pass over the source; writes nothing"
EXAMPLES = """\
examples:
  streamtrain evaluate job.toml
  streamtrain evaluate job.toml --json
  STREAMTRAIN__MODEL__KIND=mlp streamtrain evaluate job.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", help="the job's TOML file; its log, store and exports are left alone"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    import asyncio

    import orjson

    from streamtrain.commands.progress import counting
    from streamtrain.config import load_job
    from streamtrain.dense.compiled import keep_compiled
    from streamtrain.evaluation import evaluate
    from streamtrain.logs import configure_logging

    job = load_job(arguments.config)
    configure_logging(job.logging, job.name)
    keep_compiled(job.training.compiled_cache)
    with counting("samples") as progress:
        evaluation = asyncio.run(evaluate(job, progress))
    if arguments.json:
        sys.stdout.write(orjson.dumps(evaluation.as_dict(), option=orjson.OPT_INDENT_2).decode() + "\n")
        return 0
    rate = evaluation.samples / evaluation.seconds if evaluation.seconds else 0.0
    out = [f"{evaluation.samples:,} samples, {evaluation.bad_samples:,} bad, {rate:,.0f} samples/s"]
    for label, quality in evaluation.quality.items():
        out += [
            f"{label}",
            f"  AUC                 {quality.auc:.4f}   second half {evaluation.second_half[label].auc:.4f}",
            f"  log-loss            {quality.log_loss:.4f}",
            f"  normalised entropy  {quality.normalized_entropy:.4f}   below 1 is better than the mean",
            f"  calibration         {quality.calibration:.4f}   1 is calibrated",
        ]
    sys.stdout.write("\n".join(out) + "\n")
    return 0
