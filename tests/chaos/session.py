"""One run: a world, so many faults, and the verdict."""

from __future__ import annotations

import asyncio
import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from streamtrain.config import Job, load_job
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.recovery import recover
from streamtrain.sparse.residents import rows_within
from streamtrain.sparse.settings import TableSettings
from tests.chaos import oracle
from tests.chaos.faults import FAULTS, choose, kinds
from tests.chaos.stream import Truth, read_truth
from tests.chaos.world import RECOVERY_MAX_S, TOPIC, World, say

__all__ = ["Verdict", "run"]

# How often a fault is let pass before the next; the other times the next one comes on top of it.
_AWAITED = 0.4
_REPLAYS = 3


@dataclass(slots=True)
class Verdict:
    """What a run found. `holds` is the whole of it.

    By table: `rows` at the end, ids whose rows `expired` meanwhile, entries of the admission filter (`waiting`), and how many
    rows at least have left a bounded memory (`left_memory`).
    """

    faults: int = 0
    samples: int = 0
    lost: int = -1
    doubled: int = -1
    bit_equal: bool = False
    takeovers: int = 0
    takeover_s: dict[str, dict[str, float]] = field(default_factory=dict)
    seed: int = 0
    command: str = ""
    recoveries_s: dict[str, dict[str, float]] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    instants: dict[str, int] = field(default_factory=dict)
    faults_per_minute: float = 0.0
    epochs: int = 0
    bad_records: int = 0
    aborted_samples: int = 0
    acknowledged_missing: int = 0
    topic_duplicates: int = 0
    compaction_gaps: int = 0
    partitions: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    expired: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    left_memory: dict[str, int] = field(default_factory=dict)
    replayed: list[int] = field(default_factory=list)
    trainer_starts: int = 0
    ended_by_itself: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        nothing = not (self.lost or self.doubled or self.acknowledged_missing or self.violations)
        return nothing and self.bit_equal and self.samples > 0


def run(
    folder: Path,
    faults: int,
    seed: int,
    command: str,
    rate_hz: float = 250.0,
    minutes: float = math.inf,
    standbys: int = 0,
    only: str | None = None,
) -> Verdict:
    """Does `faults` faults, chosen by `seed`, in a world below `folder`, and judges; fewer, where time is up before.

    Args:
      standbys: see `World`.
      only: the group of faults to choose from, see `Fault`; all that fit by default.

    Raises:
      ServerFailed, TimeoutError: the world itself failed: it could not be set up, or healed at the end.
    """
    verdict = Verdict(seed=seed, command=command)
    names = kinds(standbys, only)
    with World(folder, seed, rate_hz, standbys) as world:
        world.until(lambda: world.learning and world.follower_epoch() > 0, "the first epoch in the follower")
        say(f"seed {seed}: the world is up in {folder}")
        begin = time.monotonic()
        try:
            _disturb(world, names, faults, random.Random(seed), begin + minutes * 60, verdict)
        finally:
            verdict.faults_per_minute = round(verdict.faults / (time.monotonic() - begin) * 60, 1)
            verdict.ended_by_itself = dict(world.exits)
            verdict.takeovers = sum(map(len, world.takeovers_s.values()))
            verdict.takeover_s = {kind: _percentiles(s) for kind, s in sorted(world.takeovers_s.items())}
            verdict.violations = world.violations
        say(
            f"{verdict.faults} faults, {verdict.faults_per_minute} a minute; everything is healed, and judged"
        )
        ends = world.settle()
        verdict.trainer_starts = world.starts
        _judge(world, ends, verdict)
    return verdict


def _disturb(
    world: World, names: list[str], faults: int, dice: random.Random, deadline: float, verdict: Verdict
) -> None:
    done: Counter[str] = Counter()
    instants: Counter[str] = Counter()
    recoveries: dict[str, list[float]] = defaultdict(list)
    for number in range(1, faults + 1):
        if time.monotonic() > deadline:
            break
        world.tend()
        kind = choose(dice, names)
        where = FAULTS[kind].act(world, dice)
        head = world.head
        done[kind] += 1
        instants[where] += 1
        verdict.faults = number
        if dice.random() < _AWAITED:
            seconds = _await_recovery(world, kind, where, head)
            recoveries[kind].append(seconds)
            recoveries["all"].append(seconds)
        else:
            time.sleep(dice.uniform(0, 0.2))
        if number % 20 == 0 or number == faults:
            say(
                f"{number} faults, epoch {world.head}, {len(world.stream.acknowledged)} samples, last: {kind}"
            )
    verdict.kinds, verdict.instants = dict(sorted(done.items())), dict(sorted(instants.items()))
    verdict.recoveries_s = {kind: _percentiles(values) for kind, values in sorted(recoveries.items())}


def _await_recovery(world: World, kind: str, where: str, head: int) -> float:
    try:
        return world.until(lambda: _recovered(world, kind, head), f"recovery from {kind} ({where})")
    except TimeoutError as error:
        say(f"VIOLATION: {error}")
        world.violations.append(str(error))
        return RECOVERY_MAX_S


def _recovered(world: World, kind: str, head: int) -> bool:
    match FAULTS[kind].recovers:
        case "stored":
            return world.store_epoch() > head
        case "followed":
            return world.follower_epoch() > head
        case _:
            return world.head > max(head, world.started_at_epoch)


def _percentiles(values: list[float]) -> dict[str, float]:
    named = {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 90, 99)}
    return {"count": len(values), **named, "max": round(max(values), 3)}


def _judge(world: World, ends: set[int], verdict: Verdict) -> None:
    job = load_job(world.config, {})
    log, archive = EpochLog.open(world.log), EpochLog.open(world.archive)
    verdict.epochs, verdict.partitions = world.head, world.stream.partitions
    truth = asyncio.run(read_truth(world.broker.bootstrap_servers, TOPIC, ends))
    chunks = oracle.decode(job, truth)

    rows = {name: oracle.folded(recover(log), name) for name in job.tables}
    ledger = oracle.compare_with_truth(chunks, rows["ledger"][1], "id")
    users = oracle.compare_with_truth(chunks, rows["users"][1], "user")
    verdict.samples, verdict.lost, verdict.doubled = ledger.samples, ledger.lost, ledger.doubled
    _check(verdict, (users.lost, users.doubled) == (0, 0), f"the users' counts are wrong: {users}")
    _account(world, truth, verdict)
    bad = sum(archive.describe(epoch).bad_samples for epoch in range(world.head + 1))
    verdict.bad_records = bad
    _check(verdict, bad == ledger.bad, f"{ledger.bad} bad records in the topic, {bad} counted in the log")
    say(f"ledger: {verdict.samples} samples, lost {verdict.lost}, doubled {verdict.doubled}")

    different = oracle.different_bits(job, archive, chunks)
    records = [archive.read(epoch) for epoch in range(world.head + 1)]
    again = {name: oracle.folded(records, name)[0] for name in rows}
    waiting = oracle.folded_filters(records)
    verdict.bit_equal = not different and all(again[name] == rows[name][0] for name in rows)
    verdict.bit_equal &= waiting == oracle.folded_filters(recover(log))
    _check(verdict, not different, f"epochs that a replay learns otherwise: {different[:10]}")
    say(f"bits: {world.head} epochs learned again without disturbance, {len(different)} differ")

    gone = {name: oracle.removed(records, name) for name in rows}
    verdict.rows = {name: len(held) for name, (held, _) in rows.items()}
    verdict.expired = {name: len(ids) for name, ids in gone.items() if ids}
    verdict.waiting = dict(Counter(table for table, _ in waiting))
    verdict.left_memory = _left_memory(job, verdict.rows)
    for name, (held, _) in rows.items():
        wrong = oracle.store_differs(
            job, log.model.model_id, world.redis.url, name, held, gone[name], world.head
        )
        _check(verdict, wrong == 0, f"{wrong} rows of {name} in the store are not those of the log")
        epoch, weights = oracle.exported(world.exports, name)
        _check(verdict, epoch == world.head, f"the export stands at {epoch}, the log at {world.head}")
        _check(
            verdict, weights == {i: row[0] for i, row in held.items()}, f"exported {name} is not the log's"
        )
    served = oracle.served_differently(job, log, world.exports)
    _check(verdict, not served, served)
    misled = oracle.values_differ(job, world.log, chunks, "counted")
    _check(verdict, not misled, misled)
    say("views: the store, the export and the follower were compared with the log")
    _commands(world, log, verdict)


def _left_memory(job: Job, rows: Mapping[str, int]) -> dict[str, int]:
    """Of tables with a bound on memory, how many rows cannot be there: so many have left it, at least."""
    return {
        name: rows[name] - rows_within(name, table, table.memory_bytes_max)
        for name, table in job.tables.items()
        if isinstance(table, TableSettings) and table.memory_bytes_max is not None
    }


def _account(world: World, truth: dict[str, Truth], verdict: Verdict) -> None:
    seen = Counter(
        json.loads(record)["id"]
        for part in truth.values()
        for record in part.records
        if record.startswith(b"{")
    )
    verdict.aborted_samples = len(world.stream.aborted)
    verdict.acknowledged_missing = len(world.stream.acknowledged - set(seen))
    verdict.topic_duplicates = sum(count - 1 for count in seen.values())
    verdict.compaction_gaps = sum(int(part.offsets[-1]) + 1 - len(part.offsets) for part in truth.values())
    shown = [number for number in world.stream.aborted if number in seen]
    _check(verdict, not shown, f"{len(shown)} aborted samples are visible to a reader: the oracle is wrong")


def _commands(world: World, log: EpochLog, verdict: Verdict) -> None:
    """`verify`, and `replay` of the newest epoch and some others that are still covered, as users run them."""
    done = _streamtrain("verify", str(world.log))
    _check(verdict, done.returncode == 0, f"verify: {done.stdout[-1000:]}{done.stderr[-500:]}")
    covered = [epoch for epoch in log.epochs() if _restorable(log, epoch)]
    dice = random.Random(verdict.seed)
    for epoch in sorted({*dice.sample(covered, min(_REPLAYS, len(covered))), covered[-1]}):
        done = _streamtrain("replay", str(world.log), str(epoch), "--config", str(world.config))
        _check(verdict, done.returncode == 0, f"replay {epoch}: {done.stdout[-500:]}{done.stderr[-500:]}")
        verdict.replayed.append(epoch)
    say(f"verify and replay of {verdict.replayed} are done")


def _restorable(log: EpochLog, epoch: int) -> bool:
    """Whether the epoch before it can be restored from what is there."""
    bases, epochs = log.bases(), log.epochs()
    return epoch > 0 and (
        epochs[0] == 0 or any(base <= epoch - 1 and base + 1 >= epochs[0] for base in bases)
    )


def _streamtrain(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamtrain", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def _check(verdict: Verdict, holds: bool, violation: str) -> None:
    if not holds:
        verdict.violations.append(violation)
        say(f"VIOLATION: {violation}")


def clean(folder: Path) -> None:
    """Removes what a run left."""
    shutil.rmtree(folder, ignore_errors=True)
