"""Samples a second of the training step against PyTorch and TensorFlow Recommenders Addons, and where our time goes.

    python -m benchmarks.train_step [--rounds 7] [--steps 12] [--rows 10000000] [--batch 5000] [--json]

The work (XDL's benchmark model): 23 slots of one id, rows of 18 floats with Adagrad, a tower 414-200-80-1 with Adam,
5000 samples a step, heavy-tailed ids over 10 M rows that all exist before. All learn the same file of samples from
memory on two threads: ours through the daemon's Learner with quarantine, dirty rows and evaluation; PyTorch in the
fastest of several ways (`chosen`), TFRA with one dynamic embedding in a tf.function. Peers come from `make bench-peers`;
one that is not there stands under `missing`.

How to read it: each has a process of its own and they take rounds in turn, so that others on the machine disturb all
alike. Rates are medians over rounds, `low` and `high` the quartiles; a ratio is of medians, its `_best` of each one's best
round, and its `_core` of samples by second of processor time. `roofline_share` is the dense half's share of the rate of
large matrix products of the same round. Losses are of samples not yet learned, in the last round: whoever learns
something else than the others fails the benchmark.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness import FOLDER, at_least_one, machine, parser_of, tell
from benchmarks.peers import peer
from benchmarks.peers.rounds import Competitor, Failed
from benchmarks.step_data import HIDDEN, StepData, Work

__all__ = ["dense_flop", "disagreement", "options_of", "rates", "stage_shares_of"]

OURS, SGEMM = "streamtrain", "sgemm"
BARS = {"torch": ("ratio_pytorch", 1.5), "tfra": ("ratio_tfra", 2.5)}
"""By peer, what our rate over its is called, and what it must be at least."""
WARM_STEPS = 6
SETTLE_STEPS = 3
"""Of each round, outside the clock: what the others have left in the caches is none of a stream's business."""
THREADS = 2
WAIT_POLICIES: dict[str, dict[str, str]] = {"spinning": {}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}
"""PyTorch's threads wait for each other spinning or asleep: the former is faster on an idle machine alone."""
_LOSS_APART_MAX = 0.05
Rounds = dict[str, list[dict[str, Any]]]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; see the module."""
    about = machine()
    folder = (FOLDER / "train_step").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    steps = WARM_STEPS + options.rounds * (SETTLE_STEPS + options.steps)
    work = Work(options.slots, options.dim, options.rows, options.batch, steps, THREADS)
    StepData.write(folder, work)
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        competitors = {OURS: stack.enter_context(_start(OURS, sys.executable, "learner_step", folder))}
        competitors[SGEMM] = stack.enter_context(_start(SGEMM, sys.executable, "sgemm", folder))
        for name in BARS:
            if (reason := peer(name).missing()) is not None:
                missing[name] = reason
                continue
            try:
                competitors[name] = stack.enter_context(_start_peer(name, folder))
            except Failed as error:
                missing[name] = str(error)
        for name, reason in missing.items():
            sys.stderr.write(f"WITHOUT {name}: {reason}\n")
        rounds = _play(competitors, options.rounds, options.steps)
    shutil.rmtree(folder)
    abouts = {name: competitor.about for name, competitor in competitors.items()}
    return summary(work, options.steps, rounds, abouts) | {
        "missing": missing,
        "machine": about | {"load_after": round(os.getloadavg()[0], 2)},
    }


def _start(
    name: str,
    interpreter: str | Path,
    module: str,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Competitor:
    threads = {f"{library}_NUM_THREADS": str(THREADS) for library in ("OPENBLAS", "OMP", "MKL")}
    command = [interpreter, "-m", f"benchmarks.{module}", folder]
    return Competitor(name, command, threads | dict(environment or {}), folder / f"{name}.log")


def _start_peer(name: str, folder: Path) -> Competitor:
    """The peer, waiting the way that it is faster with where there is a choice."""
    interpreter, module = peer(name).interpreter, f"peers.{name}_step"
    if name != "torch":
        return _start(name, interpreter, module, folder)
    tried: dict[str, float] = {}
    for policy, environment in WAIT_POLICIES.items():
        with _start(name, interpreter, module, folder, environment) as competitor:
            tried[policy] = max(competitor.about["trials_samples_per_s"].values())
    fastest = max(tried, key=lambda policy: tried[policy])
    competitor = _start(name, interpreter, module, folder, WAIT_POLICIES[fastest])
    competitor.about["waiting"] = fastest
    return competitor


def _play(competitors: Mapping[str, Competitor], rounds: int, steps: int) -> Rounds:
    """Lets them learn in turn; who begins changes from round to round. The first steps of all and of each round are left out."""
    found: Rounds = {name: [] for name in competitors}
    for competitor in competitors.values():
        competitor.learn(0, WARM_STEPS)
    names = list(competitors)
    for number in range(rounds):
        begin = WARM_STEPS + number * (SETTLE_STEPS + steps)
        settled = begin + SETTLE_STEPS
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            competitors[name].learn(begin, settled)
            found[name].append(competitors[name].learn(settled, settled + steps))
    return found


def summary(
    work: Work, steps: int, rounds: Rounds, abouts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What the rounds say."""
    samples = steps * work.batch
    learners = {name: played for name, played in rounds.items() if name != SGEMM}
    table = [
        {"name": name, **rates(samples, played), "loss": round(played[-1]["loss"], 4)}
        for name, played in learners.items()
    ]
    if fault := disagreement({name: [r["loss"] for r in played] for name, played in learners.items()}):
        raise SystemExit(fault)
    by_name = {row["name"]: row for row in table}
    ratios: dict[str, Any] = {}
    for name, (ratio, bar) in BARS.items():
        if name in by_name:
            for kind, suffix in (("samples_per_s", ""), ("best", "_best"), ("samples_per_core_s", "_core")):
                ratios[ratio + suffix] = round(by_name[OURS][kind] / by_name[name][kind], 2)
            ratios[f"{ratio}_met"] = ratios[ratio] >= bar
    ours = rounds[OURS]
    gflop = dense_flop(work) * steps / 1e9
    dense = [gflop / r["stages_s"]["dense"] for r in ours]
    peaks = [r["gflops"] for r in rounds[SGEMM]]
    return {
        "work": {
            "slots": work.slots,
            "dim": work.dim,
            "rows": work.rows,
            "batch": work.batch,
            "threads": work.threads,
        },
        **ratios,
        "roofline_share": round(statistics.median(d / p for d, p in zip(dense, peaks)), 3),
        "roofline_share_best": round(max(dense) / max(peaks), 3),
        "dense_gflops": round(statistics.median(dense), 1),
        "dense_gflops_best": round(max(dense), 1),
        "sgemm_gflops": round(statistics.median(peaks), 1),
        "sgemm_gflops_best": round(max(peaks), 1),
        "stage_ms": stage_shares_of(ours, steps),
        "dirty_rows_a_round": ours[-1]["cut_rows"],
        "competitors": table,
        "losses": [
            {"round": number, **{name: round(played[number]["loss"], 4) for name, played in learners.items()}}
            for number in range(len(ours))
        ],
        "about": {name: dict(about) for name, about in abouts.items() if name != SGEMM},
    }


def rates(samples: int, played: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Samples a second over rounds of `samples` each: median, quartiles, best, and by processor time."""
    found = sorted(samples / r["seconds"] for r in played)
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    return {
        "samples_per_s": round(middle),
        "low": round(low),
        "high": round(high),
        "best": round(found[-1]),
        "samples_per_core_s": round(statistics.median(samples / r["processor_s"] for r in played)),
    }


def stage_shares_of(played: Sequence[Mapping[str, Any]], steps: int) -> dict[str, float]:
    """By stage, the median over rounds of its milliseconds a step."""
    stages = played[0]["stages_s"]
    return {
        stage: round(statistics.median(1e3 * r["stages_s"][stage] / steps for r in played), 2)
        for stage in stages
    }


def dense_flop(work: Work) -> int:
    """Floating point operations of the tower a step: its products forward, and twice as many backward.

    The first layer has its gradient by the input as well: rows learn from it. Everything that is no product (bias,
    activation, Adam) is left out.
    """
    widths = [work.slots * work.dim, *HIDDEN, 1]
    return 3 * 2 * work.batch * sum(fan_in * fan_out for fan_in, fan_out in pairwise(widths))


def disagreement(losses: Mapping[str, Sequence[float]]) -> str:
    """What is wrong where one has learned nothing, or something else than the others; "" where nothing is."""
    for name, found in losses.items():
        if len(found) > 1 and found[-1] >= found[0]:
            return f"{name} has learned nothing: its losses were {found}"
    last = {name: found[-1] for name, found in losses.items()}
    if max(last.values()) > (1 + _LOSS_APART_MAX) * min(last.values()):
        return f"not the same work: losses of the last round are {last}"
    return ""


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("train_step", __doc__)
    for name, default, words in (
        ("rounds", 7, "rounds of each"),
        ("steps", 12, "steps a round"),
        ("rows", 10_000_000, "rows in the table"),
        ("slots", 23, "slots of one id"),
        ("dim", 18, "floats a row"),
        ("batch", 5000, "samples a step"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{words} (default: %(default)s)")
    options = parser.parse_args(arguments)
    at_least_one(parser, options, "rounds", "steps", "slots", "dim", "batch")
    if options.rows < 2 * options.slots:
        parser.error(f"--rows {options.rows}: must be at least two a slot")
    return options


def main() -> None:
    options = options_of()
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
