"""Prequential AUC of the built-in models on KuaiRand-Pure, one pass in time order, against published learners.

    python -m benchmarks.quality [--model linear mlp deepfm din] [--json]

Each sample is scored before it is learned from. Every run is `examples/kuairand.toml` with the changes that stand in
`VARIANTS`; `no_history` leaves out what is known of the user's own past (the lists, the last outcomes and the gap), so it
has the features that the reference learners had. References: measured once on the same rows, see docs/performance.md.

How to read it: differences below 0.0005 are noise of the seed. Settings were chosen on this very stream, so expect a
little less elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import tomllib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from benchmarks.harness import data, machine, parser_of, tell
from streamtrain.config import parse_job
from streamtrain.evaluation import evaluate

__all__ = ["HISTORY", "VARIANTS", "job_of"]

HISTORY = ("clicked_videos", "skipped_videos", "clicked_tags", "skipped_tags", "recent_outcomes", "gap_s")

MEASURES = ("auc", "auc_second_half", "log_loss")

REFERENCES: Mapping[str, tuple[float, ...]] = {
    "vowpal wabbit 9.11, defaults": (0.7171, 0.7231, 0.6073),
    "vowpal wabbit 9.11, ftrl 0.1": (0.7127, 0.7182, 0.6099),
    "deepfm, pytorch 2.13, batch 64": (0.7139, 0.7278, 0.6088),
}

Job = dict[str, Any]


def _linear(job: Job) -> None:
    """Logistic regression: one weight an id; a list's ids count with their mean."""
    job["tables"]["main"] |= {"dim": 1, "optimizer": {"kind": "adagrad", "learning_rate": 0.07}}


def _mlp(job: Job) -> None:
    """The example as it stands."""


def _deepfm(job: Job) -> None:
    """A row is one linear weight and 8 factors; the pair term over-fits at the mlp's learning rate."""
    job["tables"]["main"] |= {"dim": 9, "optimizer": {"kind": "adagrad", "learning_rate": 0.01}}


def _din(job: Job) -> None:
    """Attention over the clicked videos, with the candidate as the query."""
    job["schema"]["slots"]["clicked_videos"]["pooling"] = "none"


VARIANTS: Mapping[str, Callable[[Job], None]] = {
    "linear": _linear,
    "mlp": _mlp,
    "deepfm": _deepfm,
    "din": _din,
}


def job_of(example: Job, model: str, history: bool) -> Job:
    """The example's job with another model; `history` keeps the slots of `HISTORY`."""
    job = deepcopy(example)
    job["model"] = {"kind": model}
    VARIANTS[model](job)
    if not history:
        for slot in HISTORY:
            del job["schema"]["slots"][slot]
    return job


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One pass a variant; see the module."""
    about, samples = machine(), data()
    if samples.name != "kuairand":
        return {
            "skipped": "KuaiRand is not there: set KUAIRAND_DIR to its folder (the README says where to get it)"
        }
    example = tomllib.loads(samples.config.read_text(encoding="utf-8"))
    example["source"]["paths"] = [str(samples.parquet)]
    runs = [_line(name, "no history", measures, None) for name, measures in REFERENCES.items()]
    for model in options.model:
        # Without a history there is nothing to attend to.
        for history in (False, True) if model != "din" else (True,):
            job = parse_job(job_of(example, model, history), "benchmarks.quality")
            found = asyncio.run(evaluate(job)).as_dict()
            features = "with history" if history else "no history"
            measures = tuple(found[name] for name in MEASURES)
            runs.append(_line(f"streamtrain {model}", features, measures, round(found["samples_per_s"])))
    return {"data": samples.name, "samples": samples.samples, "runs": runs, "machine": about}


def _line(learner: str, features: str, measures: tuple[float, ...], rate: int | None) -> dict[str, Any]:
    rounded = {name: round(value, 4) for name, value in zip(MEASURES, measures, strict=True)}
    return {"learner": learner, "features": features, **rounded, "samples_per_s": rate}


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("quality", __doc__)
    parser.add_argument(
        "--model", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="default: all"
    )
    return parser.parse_args(arguments)


def main() -> None:
    options = options_of()
    result = measure(options)
    if "skipped" in result and not options.json:
        print(f"skipped: {result['skipped']}")
        return
    tell(result, options.json)


if __name__ == "__main__":
    main()
