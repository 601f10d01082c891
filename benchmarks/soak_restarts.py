"""Whether anything grows, or is lost, where each part is restarted: a steady stream with Kafka, Redis, deltas and a follower.

    python -m benchmarks.soak_restarts [--minutes 30] [--rate 1500] [--plot docs/soak.png] [--json]

A producer sends the same `--samples` samples again and again at `--rate`, so the model stops growing after the first round, and
what grows after that leaks. Six restarts lie evenly in the first two thirds of the run: the daemon (SIGTERM, then kill -9), the
follower (kill -9), Redis and the broker (stop and start, with their data), and the producer, which ends with what it has sent
acknowledged, and another begins. The last third is left alone. Every `--every` seconds it looks at memory, descriptors and threads of the processes, and at
what stands on disk; looks and restarts stand in build/bench/soak_restarts.jsonl at once. A look has no figures of what is being
restarted at that moment.

How to read it: `growth` is of the second half of the run; of a process that was restarted later, from a fifteenth of the run after
that. `first_third` and `last_third` of that time are medians, `per_hour` is the slope of a straight line (least squares), with the
restarts of others in it; `alone_per_hour` is that of the end that is left alone, from a fifteenth of the run after the last restart.
The log and the exports go up and down between two bases, so their slopes are not 0 where they are flat.
`restarts` tells what each one cost until the next: `back_s` until what was restarted works again, the longest time between two
epochs in the log and between two versions in the follower (an epoch takes a second), and the most that was waited for.
`exactly_once`: the producers' count, the log's and the sum of the log's spans are one number, no span begins elsewhere than
where the one before it ended, and all bytes of the log are verified. What the processes said stays in build/bench/soak_restarts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.end_to_end import work_of
from benchmarks.harness import FOLDER, machine, parser_of, skip_without, tell
from benchmarks.soak import slope_per_hour
from benchmarks.soak_ledger import Ledger, longest_pause_s
from benchmarks.soak_picture import draw
from benchmarks.soak_world import PATIENCE_S, RESTARTS, World
from tests.daemon import streamtrain, until

__all__ = ["GROWS", "Restart", "cost", "growth", "options_of", "restart_times"]

LOOKS = FOLDER / "soak_restarts.jsonl"
_RESTART_S_MIN = 20.0
_LEVEL = re.compile(r'^\{"time":"[^"]*","level":"(\w+)"', re.M)

GROWS: dict[str, str] = {
    **{f"daemon_{name}": "daemon" for name in ("rss_mb", "rss_anon_mb", "fds", "threads")},
    **{f"follower_{name}": "follower" for name in ("rss_anon_mb", "fds", "threads")},
    **{f"redis_{name}": "redis" for name in ("rss_mb", "used_mb")},
    **dict.fromkeys(("log_mb", "exports_mb", "rows", "lag_records"), ""),
}
"""The figures that should not grow, and whose they are; "": of no process."""


@dataclass(frozen=True, slots=True)
class Restart:
    """One that was done. `at_s` is since the run's begin, `at_ms` since 1970."""

    name: str
    at_s: float
    at_ms: int
    back_s: float


def restart_times(minutes: float) -> list[float]:
    """When each restart of a run is due, in seconds."""
    return [60 * minutes * (place + 1) / (len(RESTARTS) * 3 / 2) for place in range(len(RESTARTS))]


def growth(
    looks: Sequence[Mapping[str, float]], name: str, since_s: float, alone_s: float
) -> dict[str, str | float] | None:
    """How a figure went from `since_s` on, and from `alone_s` on; None where there are fewer than four looks at it."""
    seen = [row for row in looks if row["at_s"] >= since_s and name in row]
    alone = [row for row in seen if row["at_s"] >= alone_s]
    if len(alone) < 4:
        return None
    values, third = [row[name] for row in seen], len(seen) // 3
    return {
        "figure": name,
        "minutes": round((seen[-1]["at_s"] - seen[0]["at_s"]) / 60, 1),
        "first_third": round(statistics.median(values[:third]), 1),
        "last_third": round(statistics.median(values[-third:]), 1),
        "max": round(max(values), 1),
        "per_hour": _slope(seen, name),
        "alone_per_hour": _slope(alone, name),
    }


def _slope(looks: Sequence[Mapping[str, float]], name: str) -> float:
    slope = slope_per_hour([row["at_s"] for row in looks], [row[name] for row in looks])
    return round(slope, 1) + 0.0  # Never -0.


def cost(
    restart: Restart,
    until_s: float,
    commits_ms: Sequence[int],
    visible_ms: Sequence[int],
    looks: Sequence[Mapping[str, float]],
) -> dict[str, str | float]:
    """What a restart cost.

    Args:
      restart: which.
      until_s: when the next one began, or the run ended.
      commits_ms, visible_ms: when epochs were committed, and versions visible in the follower.
      looks: all.
    """
    until_ms = restart.at_ms + round((until_s - restart.at_s) * 1000)
    within = [row for row in looks if restart.at_s <= row["at_s"] < until_s]
    return {
        "restart": restart.name,
        "at_min": round(restart.at_s / 60, 1),
        "back_s": round(restart.back_s, 1),
        "without_epoch_s": round(longest_pause_s(commits_ms, restart.at_ms, until_ms), 1),
        "without_version_s": round(longest_pause_s(visible_ms, restart.at_ms, until_ms), 1),
        "lag_records_max": round(max((row.get("lag_records", 0) for row in within), default=0)),
        "store_behind_max": round(max((row.get("store_behind", 0) for row in within), default=0)),
    }


class _Run:
    """The looks and restarts of a run, as they come; each stands in the file at once."""

    def __init__(self, world: World, options: argparse.Namespace) -> None:
        self._world, self._options = world, options
        self.ledger = Ledger()
        self.looks: list[dict[str, float]] = []
        self.restarts: list[Restart] = []
        self._begin = time.monotonic()

    def run(self) -> None:
        """Until the time is over and the restarts are done."""
        due = list(zip(restart_times(self._options.minutes), RESTARTS))
        doing: tuple[Future[Restart], str] | None = None
        with ThreadPoolExecutor(1, "restart") as pool:
            while doing or self._passed() < 60 * self._options.minutes:
                if doing and doing[0].done():
                    self._note(doing[0].result())
                    doing = None
                if due and doing is None and self._passed() >= due[0][0]:
                    name = due.pop(0)[1]
                    doing = pool.submit(self._restart, name), RESTARTS[name][0]
                self._look(doing[1] if doing else "")
                next_s = (self._passed() // self._options.every + 1) * self._options.every
                if due and doing is None:
                    next_s = min(next_s, due[0][0])
                time.sleep(max(0.0, next_s - self._passed()))

    def read(self) -> int:
        """Adds the epochs that are new to the ledger; the samples in it."""
        log = self._world.log
        for epoch in range(self.ledger.next_epoch, (log.head() or 0) + 1):
            self.ledger.add(log.describe(epoch))
        return self.ledger.samples

    def _passed(self) -> float:
        return time.monotonic() - self._begin

    def _restart(self, name: str) -> Restart:
        at_s, at_ms = self._passed(), time.time_ns() // 1_000_000
        RESTARTS[name][1](self._world)
        return Restart(name, at_s, at_ms, self._passed() - at_s)

    def _note(self, restart: Restart) -> None:
        self.restarts.append(restart)
        self._write({"restart": restart.name, "at_s": restart.at_s, "back_s": restart.back_s})

    def _look(self, away: str) -> None:
        at_s, samples = self._passed(), self.read()
        seen = {
            "at_s": at_s,
            "samples": samples,
            "epoch": self.ledger.next_epoch - 1,
            "load": os.getloadavg()[0],
        }
        self.looks.append(seen | self._world.look(away))
        self._write(self.looks[-1])

    def _write(self, row: Mapping[str, Any]) -> None:
        rounded = {
            name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()
        }
        with LOOKS.open("a") as file:
            file.write(json.dumps(rounded) + "\n")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs it; see the module."""
    about, folder = machine(), (FOLDER / "soak_restarts").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    LOOKS.unlink(missing_ok=True)
    samples = work_of(folder, options.samples, options.rows, options.batch)
    first = round(options.rate * restart_times(options.minutes)[[*RESTARTS].index("producer")])
    counts = first, round(options.rate * 60 * options.minutes) - first
    with ExitStack() as stack:
        world = World(folder, samples, counts, options, stack)
        run = _Run(world, options)
        run.run()
        account = _settle(world, run)
        versions = world.versions
    if options.plot is not None:
        title = f"{options.minutes:g} minutes at {options.rate:g} samples a second"
        restarts = [{"restart": restart.name, "at_s": restart.at_s} for restart in run.restarts]
        draw(title, run.looks, restarts, options.plot)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "exports")
    return {
        "minutes": options.minutes,
        "rate": options.rate,
        "samples_per_s": round(run.looks[-1]["samples"] / run.looks[-1]["at_s"]),
        "load_median": round(statistics.median(row["load"] for row in run.looks), 1),
        "epochs": run.ledger.next_epoch - 1,
        **account,
        "said": _said(folder),
        "growth": _growths(run, options.minutes),
        "restarts": _costs(run, [visible for _, visible in versions]),
        "machine": about,
    }


def _settle(world: World, run: _Run) -> dict[str, Any]:
    """Lets everything be learned, stops all in order, and compares the counts."""
    # Reading on meanwhile: epochs are collected.
    until(lambda: (run.read(), world.producer.poll())[1] is not None, "the producer to end", PATIENCE_S)
    world.end_producer()
    until(lambda: run.read() >= world.sent, "all samples to be learned", PATIENCE_S)
    world.stop_daemon()
    learned, head = run.read(), world.log.head() or 0
    until(lambda: world.versions[-1][0] >= head, "all of it to be visible", PATIENCE_S)
    world.follower.send_signal(signal.SIGTERM)
    if code := world.follower.wait(PATIENCE_S):
        raise SystemExit(f"the follower ended with {code}")
    verified = streamtrain("verify", world.log.path)
    counted = world.log.describe(head).samples_total
    whole = not run.ledger.faults and verified.returncode == 0
    return {
        "exactly_once": whole and world.sent == learned == counted,
        "sent": world.sent,
        "learned_by_spans": learned,
        "learned_by_count": counted,
        "faults": "; ".join(run.ledger.faults) or "none",
        "verify": (verified.stdout + verified.stderr).strip().rpartition("/")[2],
    }


def _growths(run: _Run, minutes: float) -> list[dict[str, str | float]]:
    settled = {RESTARTS[one.name][0]: one.at_s + one.back_s + 4 * minutes for one in run.restarts}
    half, alone = 30 * minutes, max(settled.values())
    found = (
        growth(run.looks, name, max(half, settled.get(whose, 0.0)), alone) for name, whose in GROWS.items()
    )
    return [row for row in found if row is not None]


def _costs(run: _Run, visible_ms: Sequence[int]) -> list[dict[str, str | float]]:
    ends = [*(restart.at_s for restart in run.restarts[1:]), run.looks[-1]["at_s"]]
    commits = run.ledger.commits_ms
    return [cost(restart, end, commits, visible_ms, run.looks) for restart, end in zip(run.restarts, ends)]


def _said(folder: Path) -> dict[str, int]:
    """How many lines of each level the daemons have logged."""
    return dict(
        Counter(level for file in folder.glob("job.*.out") for level in _LEVEL.findall(file.read_text()))
    )


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of("soak_restarts", __doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1500.0, help="samples a second (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=60_000, help="of a round (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=200_000, help="that ids are of (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=500, help="samples a minibatch (default: %(default)s)")
    parser.add_argument("--base-every", type=int, default=30, help="epochs a base (default: %(default)s)")
    parser.add_argument(
        "--every", type=float, default=5.0, help="seconds between looks (default: %(default)s)"
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw everything to this file")
    options = parser.parse_args(arguments)
    if restart_times(options.minutes)[0] < _RESTART_S_MIN:
        parser.error(f"--minutes must leave {_RESTART_S_MIN:g} s for each restart")
    if options.rate < 1 or options.every <= 0:
        parser.error("--rate must be 1 or more, --every above 0")
    if options.base_every < 4 * options.every:
        parser.error(
            "--base-every must be four times --every: epochs are looked at before they are collected"
        )
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: make setup")
    return options


def main() -> None:
    options = options_of()
    skip_without("java", "mvn", "redis-server", "redis-cli", as_json=options.json)
    tell(measure(options), options.json)


if __name__ == "__main__":
    main()
