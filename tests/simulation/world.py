"""One seed, from nothing to the last check."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.reader import LogReader
from tests.simulation.daemon import World
from tests.simulation.disk import Disk, Glances, SimulatedFiles, WorldPath
from tests.simulation.ledger import JOB
from tests.simulation.loom import within
from tests.simulation.nemesis import Nemesis
from tests.simulation.oracle import Oracle
from tests.simulation.scheduler import Scheduler
from tests.simulation.settings import Settings
from tests.simulation.store import Shards
from tests.simulation.stream import Stream

__all__ = ["Outcome", "simulate"]

_STREAM_S = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a world ended.

    Attributes:
      failure: what did not hold, or None.
      epochs, samples: committed; learned.
      switches: from one fiber to another.
      faults: by kind, how many.
      trace: (seconds, who, what), in order.
    """

    seed: int
    failure: str | None
    epochs: int
    samples: int
    switches: int
    faults: dict[str, int]
    trace: list[tuple[float, str, str]]

    def text(self, last: int = 80) -> str:
        """The end of the story, for people."""
        lines = [f"{at - 1000:8.3f}s  {who:<24} {what}" for at, who, what in self.trace[-last:]]
        replay = f"python -m tests.simulation --start {self.seed} --seeds 1 --trace"
        return "\n".join([*lines, f"seed {self.seed}: {self.failure or 'ok'}", f"replay: {replay}"])


def simulate(seed: int) -> Outcome:
    """Runs the world of a seed; call it inside `woven`."""
    fast = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="simulation", dir=fast if fast.is_dir() else None))
    try:
        return _simulate(seed, directory)
    finally:
        shutil.rmtree(directory)


def _simulate(seed: int, directory: Path) -> Outcome:
    scheduler = Scheduler(seed)
    with within(scheduler):
        disk, store = Disk(scheduler), Shards(scheduler)
        log_path, exports_path = WorldPath(directory / "log"), WorldPath(directory / "exports")
        settings, stream = (
            Settings.roll(scheduler.random),
            Stream.make(scheduler.random, scheduler.now, _STREAM_S),
        )
        # The log is made before anything goes wrong; tests/unit/log breaks its making at every call.
        maker = SimulatedFiles(disk, scheduler.current.process)
        EpochLog.create(log_path, "ledger", JOB, maker)
        disk.sync_everything()
        oracle = Oracle(stream, LogReader.open(log_path, Glances(disk)), disk, store)
        disk.on_sync, store.on_whole = oracle.synced, oracle.shard_whole
        world = World(scheduler, settings, stream, disk, store, oracle, log_path, exports_path)
        nemesis = Nemesis(world, _STREAM_S * scheduler.random.choice([0.5, 1.0]))
        scheduler.spawn(nemesis.process, "main", nemesis.run)
        scheduler.run()
    failure = scheduler.failure
    return Outcome(
        seed,
        None if failure is None else f"{type(failure).__name__}: {failure}",
        oracle.head + 1,
        oracle.samples,
        scheduler.picks,
        nemesis.faults,
        scheduler.trace,
    )
