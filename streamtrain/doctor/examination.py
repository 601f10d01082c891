"""Everything that a daemon will meet, looked at in turn: the job, the machine, its disks, its source and its store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

from streamtrain import plugins
from streamtrain.config import Job
from streamtrain.dead_letters.settings import DeadLetterFile, DeadLetterTopic
from streamtrain.doctor.disk import examine_log_disk, examine_room
from streamtrain.doctor.job import check
from streamtrain.doctor.machine import examine_machine
from streamtrain.errors import ConfigError, StreamtrainError
from streamtrain.findings import Finding, Resumption
from streamtrain.kafka_connection import KafkaConnection
from streamtrain.log.lock_file import LockFile, LockHeld
from streamtrain.log.reader import LogReader

__all__ = ["examine"]

_PATIENCE_S = 60.0


async def examine(job: Job) -> list[Finding]:
    """Looks at everything. What it tries on disks and servers, it removes."""
    found = await asyncio.to_thread(check, job)
    found += await asyncio.to_thread(_examine_here, job)
    found += await _bounded("source", _source(job))
    if isinstance(letters := job.training.bad_samples.dead_letters, DeadLetterTopic):
        found += await _bounded("dead letters", _dead_letters(job, letters))
    if job.store.endpoint.addresses:
        from streamtrain.store.diagnosis import diagnose_servers

        found += await _bounded("store", diagnose_servers(job.store))
    return found


async def _bounded(area: str, looking: Awaitable[list[Finding]]) -> list[Finding]:
    """What an examination finds; that it fails or takes too long is a finding too."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await looking
    except TimeoutError:
        return [
            Finding.fault(
                area,
                f"no answer within {_PATIENCE_S:g} s",
                "look at the network in between, and at the server",
            )
        ]
    except StreamtrainError as error:
        return [Finding.fault(area, str(error), "")]


def _examine_here(job: Job) -> list[Finding]:
    """This machine and its disks."""
    path = Path(job.log.path)
    newest_s, base_bytes = None, 0
    # What is wrong with a log was told by `check`.
    with suppress(StreamtrainError, OSError):
        log = LogReader.open(path)
        if bases := log.bases():
            base_bytes = log.base_bytes(bases[-1])
        if epochs := log.epochs():
            newest_s = log.epoch_path(epochs[-1]).stat().st_mtime
    dtype = getattr(job.model, "compute_dtype", "float32")  # Of models with layers.
    found = examine_machine(max(job.training.threads, job.training.dense_threads), newest_s, dtype)
    found += examine_log_disk(path, base_bytes, job.log.epoch_interval_s)
    for what, other in _directories(job).items():
        found += examine_room(what, other, base_bytes)
    return [*found, *_writer(job, path)]


def _directories(job: Job) -> dict[str, Path]:
    """By what it is, every other directory that the job writes to."""
    found = {}
    if job.store.endpoint.path:
        found["store"] = Path(job.store.endpoint.path)
    for settings in job.exports:
        if path := getattr(settings, "path", None):
            found[f"export {settings.kind!r}"] = Path(path)
    if isinstance(letters := job.training.bad_samples.dead_letters, DeadLetterFile):
        found["file of dead letters"] = Path(letters.path).parent
    return found


def _writer(job: Job, path: Path) -> list[Finding]:
    """Who writes the log now, which is no fault: a doctor may look while a daemon runs."""
    if not (path / "LOCK").exists():
        return []
    try:
        lock, _ = LockFile.take(path / "LOCK")
    except LockHeld as holder:
        if job.failover is not None:
            return [Finding.ok("log", f"{holder} writes it; another daemon would stand by")]
        return [
            Finding.warning(
                "log",
                f"{holder} writes it now: a second daemon would be refused",
                "none is needed where this is the daemon that you mean; else give the other a log.path of its own",
            )
        ]
    except OSError as error:
        return [
            Finding.fault("log", f"its lock cannot be taken: {error.strerror or error}", f"ls -l {path}/LOCK")
        ]
    lock.close()
    return []


async def _source(job: Job) -> list[Finding]:
    """What the source's plug-in finds, where it looks at all."""
    diagnose = getattr(plugins.load("consumers", job.source.kind), "diagnose", None)
    if diagnose is None:
        return [Finding.ok("source", f"kind {job.source.kind!r} has nothing to be looked at")]
    positions, identity = None, ""
    with suppress(StreamtrainError):
        log = LogReader.open(Path(job.log.path))
        if (head := log.head()) is not None:
            record = await asyncio.to_thread(log.describe, head)
            positions, identity = record.positions, str(record.notes.get("source", ""))
    groups = () if job.failover is None else (job.failover.group_id,)
    with plugins.blamed(ConfigError, f"source {job.source.kind!r}: looking at it"):
        found: list[Finding] = await diagnose(job.source, Resumption(positions, identity, groups))
    return found


async def _dead_letters(job: Job, letters: DeadLetterTopic) -> list[Finding]:
    # Only where letters go to Kafka: its client takes a while to import.
    from consumers.kafka.diagnosis import diagnose_dead_letters

    connection = letters.connection or job.source
    assert isinstance(connection, KafkaConnection), "the job was checked"
    return await diagnose_dead_letters(connection, letters.topic)
