"""A registered reader of the log: whatever it still needs is never collected while it lives."""

from __future__ import annotations

from streamtrain.errors import EpochMissing, LogError
from streamtrain.log.reader import LogReader
from streamtrain.log.recovery import recover
from tests.simulation.daemon import World, opened_log
from tests.simulation.disk import SimulatedFiles
from tests.simulation.ledger import Ledger
from tests.simulation.scheduler import Process

__all__ = ["read_registered"]


def read_registered(world: World, process: Process) -> None:
    """Registers, chooses a base, and follows the log for ever, slowly. A failing disk makes it begin again."""
    scheduler = world.scheduler
    while True:
        try:
            _read(world, process)
        except LogError as error:
            # A registration is no promise to one whose disk fails; to all others it is.
            if isinstance(error, EpochMissing) or not world.disk.errors:
                raise
            scheduler.say(f"begins again: {error}")
        scheduler.sleep(0.1)


def _read(world: World, process: Process) -> None:
    scheduler, model, epoch = world.scheduler, Ledger(), -1
    log = opened_log(LogReader, world, SimulatedFiles(world.disk, process))
    with log.register("reader") as registration:
        while epoch < 0:
            for record in recover(log):
                model.load(record)
                epoch = record.epoch
                registration.advance(epoch)
            scheduler.sleep(scheduler.random.random() * 0.3)
        while True:
            while epoch < (log.head() or 0):
                epoch += 1
                model.load(log.read(epoch))
                world.oracle.restored(epoch, model, rows=True)
                registration.advance(epoch)
                scheduler.sleep(scheduler.random.random() * 0.3)
            registration.advance(epoch)
            scheduler.sleep(scheduler.random.random() * 0.3)
