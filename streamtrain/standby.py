"""The daemon beside the one that learns: follows the log warm, and takes over when the owner is gone."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from typing import Self

from streamtrain.errors import EpochMissing, Fenced, FormatUnknown, LogError, RegistrationRefused
from streamtrain.health import Health
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.readers import Registration
from streamtrain.log.record import EpochRecord
from streamtrain.metrics import Metrics
from streamtrain.ownership import Ownership
from streamtrain.restorer import Restorer
from streamtrain.training.committer import writer_name
from streamtrain.training.learner import Learner

__all__ = ["Standby", "claim"]

logger = logging.getLogger(__name__)

# How often the log is looked at for a new epoch. A takeover looks at once.
_POLL_S = 0.2
_CLAIMS_MAX = 10


class Standby:
    """Waits for the model, with a copy of it that is an epoch behind at most. Writes nothing.

    A context manager: in it, the log keeps what this standby still needs.

    Args:
      log: read.
      restorer: follows it.
      ownership: says when this daemon owns.
      health, metrics: told how it stands.
    """

    def __init__(
        self, log: EpochLog, restorer: Restorer, ownership: Ownership, health: Health, metrics: Metrics
    ) -> None:
        self._log, self._restorer, self._ownership = log, restorer, ownership
        self._health, self._metrics = health, metrics
        self._guard = threading.Lock()
        self._registration: Registration | None = None
        self._failing = self._unregistered = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # As the owner, or as none any more: what this standby held is collected again.
        await asyncio.to_thread(self._leave)

    async def until_owner(self) -> None:
        """Joins the other daemons, and follows the log until this one owns.

        What cannot be read is tried again: it is the owner's to be stopped by a damaged log, and a takeover may repair it.

        Raises:
          FormatUnknown: the owner is of a newer version, which this one cannot follow.
          And as `Ownership.owned`.
        """
        self._metrics.owner.set(0)
        begin = time.monotonic()
        logger.info("joining the other daemons, with epoch %d", self._restorer.epoch)
        owned = asyncio.create_task(self._ownership.owned(), name="ownership")
        try:
            while not (await _done(owned, _POLL_S)):
                await self.follow()
            await owned
        finally:
            owned.cancel()
        logger.info("this daemon owns the model now, after %.1f s of standing by", time.monotonic() - begin)

    async def follow(self) -> None:
        """Goes on to the head of the log, as far as that can be read. Raises FormatUnknown."""
        try:
            await asyncio.to_thread(self._register)
            await asyncio.to_thread(self._restorer.catch_up)
            lag = await asyncio.to_thread(self._lag)
        except FormatUnknown:
            raise  # It does not pass. A restart, once the newer version is installed, is what mends it.
        except LogError as error:
            if not self._failing:
                logger.warning("this standby cannot follow the log, trying on: %s", error)
                self._health.say("standby, behind")
            self._failing = True
            return
        self._failing = False
        self._health.set_ready("standby")
        self._metrics.standby_epoch.set(self._restorer.epoch)
        self._metrics.standby_lag_epochs.set(lag)

    def _register(self) -> None:
        with self._guard:
            if self._registration is None and not self._unregistered:
                try:
                    self._registration = self._log.register(f"standby {writer_name()}", kind="standby")
                except RegistrationRefused as error:
                    self._unregistered = True
                    logger.warning("%s", error)

    def _leave(self) -> None:
        # A stop does not end a thread that is about to register: it finds that it is not to, or has done so already.
        with self._guard:
            self._unregistered = True
            if self._registration is not None:
                self._registration.leave()

    def _lag(self) -> int:
        """Says how far it is, and tells how many epochs are left."""
        if self._registration is not None and self._restorer.epoch >= 0:
            self._registration.advance(self._restorer.epoch)
        head = self._log.head()
        return 0 if head is None else max(0, head - self._restorer.epoch)


async def claim(log: EpochLog, learner: Learner, restorer: Restorer) -> EpochRecord | None:
    """Brings the model to the head of the log and appends an epoch without samples: the former owner is fenced from then on.

    Without it, one that was paused and wakes could still append before the first epoch with samples is cut; then it would
    be the new owner that is fenced.

    Returns:
      What was appended; None of an empty log.

    Raises:
      Fenced: another daemon has taken over meanwhile, or the former owner was faster each time.
    """
    for _ in range(_CLAIMS_MAX):
        last = await asyncio.to_thread(restorer.catch_up)
        if last is None:
            return None
        record = learner.cut()
        record = dataclasses.replace(
            record,
            previous=await asyncio.to_thread(log.continue_from, last.epoch),
            committed_at_ms=time.time_ns() // 1_000_000,
            writer=writer_name(),
            notes={**record.notes, "took_over": last.writer},
        )
        try:
            await asyncio.to_thread(log.append, record)
        except Fenced as error:
            # This daemon was paused before it could append, and is not the owner any more: it must not fence the one that is.
            if winner := await asyncio.to_thread(_taken_over_by, log, record.epoch):
                raise Fenced(
                    f"{winner} has taken over the log {log.path} before this daemon could, which was paused, or cut off from "
                    "Kafka. Start it again, and it stands by"
                ) from error
            logger.info("the former owner has appended meanwhile, following it: %s", error)
        else:
            return await asyncio.to_thread(restorer.catch_up)
    raise Fenced(
        f"the log {log.path} has a writer that goes on: this daemon does not get in between its epochs"
    )


def _taken_over_by(log: EpochLog, epoch: int) -> str:
    """Who has taken over at this epoch or later; "" where nobody has."""
    try:
        records = (log.describe(later) for later in range(epoch, (log.head() or 0) + 1))
        return next((record.writer for record in records if "took_over" in record.notes), "")
    except EpochMissing:
        return "another daemon"  # it has collected what this one was beaten by


async def _done(task: asyncio.Task[None], timeout_s: float) -> bool:
    done, _ = await asyncio.wait({task}, timeout=timeout_s)
    return bool(done)
