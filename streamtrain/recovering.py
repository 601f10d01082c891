"""From an epoch log to everything that learning goes on from: the model, where the source is read, what the store has."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from functools import partial

from streamtrain import plugins
from streamtrain.errors import Fenced, SourceError
from streamtrain.health import Health
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.record import EpochRecord
from streamtrain.metrics import Metrics
from streamtrain.outages import outlasted
from streamtrain.restorer import Restorer
from streamtrain.sources import Positions, Source
from streamtrain.store.applier import StoreApplier
from streamtrain.training.committer import writer_name
from streamtrain.training.learner import Learner

__all__ = ["Recovering"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Recovering:
    """What has to stand at the same epoch before anything is learned.

    Attributes:
      log: this daemon's to write.
      learner: warm, or being warmed up.
      restorer: of the two.
      source: not started.
      kind: the source's, for errors.
      applier: of the store; None where there is none.
    """

    log: EpochLog
    learner: Learner
    restorer: Restorer
    source: Source
    kind: str
    applier: StoreApplier | None

    async def finish(self, health: Health, metrics: Metrics) -> EpochRecord:
        """Brings model and store to the log's head, and the source to its positions; begins a log that is empty.

        Returns:
          The record of the head, without its arrays.

        Raises:
          What the log, the source or the store raises; a store that is away for a while is waited for.
        """
        last = await asyncio.to_thread(self.restorer.catch_up)
        if last is None:
            last = await self._begin()
        else:
            await self._start_source(last.positions, self.learner.source)
            self.learner.source = self.source.identity
            logger.info("recovered epoch %d: %d samples", last.epoch, last.samples_total)
        if self.applier is not None:
            await outlasted(partial(self.applier.catch_up, last.epoch), health, metrics)
        return last

    async def _begin(self) -> EpochRecord:
        # Where reading starts is durable before the first sample: "latest" means the same after a crash.
        positions = await self._start_source(None)
        genesis = dataclasses.replace(
            self.learner.genesis(positions, self.source.identity),
            committed_at_ms=time.time_ns() // 1_000_000,
            writer=writer_name(),
        )
        await asyncio.to_thread(self.log.append, genesis)
        last = await asyncio.to_thread(self.restorer.catch_up)
        assert last is not None, "it was just appended"
        if last.epoch != genesis.epoch:
            # The source stands at the beginning, and the model does not any more.
            raise Fenced(
                f"another daemon ({last.writer or 'unknown'}) has gone on to epoch {last.epoch} of {self.log.path} while this "
                "one, which began the log, was paused: stop it, the other one goes on"
            )
        return last

    async def _start_source(self, positions: Positions | None, identity: str = "") -> dict[str, int]:
        with plugins.blamed(SourceError, f"source {self.kind!r}: start"):
            return await self.source.start(positions, identity)
