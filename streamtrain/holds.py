"""What the daemon's own views hold in the log, and the metrics of everyone who holds anything there.

The store and each exporter are registered readers like any other, so one that lags (a Redis that is down, an export
disk that is full) goes on with the next epoch when it is back, and reloads nothing, within the bounds of the log's settings.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from streamtrain.errors import RegistrationRefused
from streamtrain.log.readers import Readers, Registration
from streamtrain.metrics import Metrics

__all__ = ["READERS_SHOWN_MAX", "Holds"]

logger = logging.getLogger(__name__)

# Each is a time series, and names of other processes come and go.
READERS_SHOWN_MAX = 16


class Holds:
    """Keeps the registrations of views, and the gauges of all readers. Blocks on the disk: call it in a thread.

    A registration is not removed when the daemon stops: whoever goes on within the lease, this daemon or a standby, finds
    every epoch that its views still lack.

    Args:
      readers: of the log.
      positions: by view, the epoch that it has; None while it has nothing, since it then begins from a base.
      lease_s: of the log's settings.
      metrics: `log_readers`, `log_reader_epoch`.
      clock: seconds since 1970.
    """

    def __init__(
        self,
        readers: Readers,
        positions: Mapping[str, Callable[[], int | None]],
        lease_s: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._readers, self._positions, self._lease_s = readers, positions, lease_s
        self._metrics, self._clock = metrics, clock
        self._guard = threading.Lock()
        self._registered: dict[str, Registration] = {}
        self._refused: set[str] = set()
        self._shown: set[str] = set()

    def renew(self) -> None:
        """Says for every view how far it is. Never raises for the disk; what fails is tried again at the next call."""
        with self._guard:
            for name, position in self._positions.items():
                if (epoch := position()) is not None:
                    self._renew(name, epoch)

    def _renew(self, name: str, epoch: int) -> None:
        if (registration := self._registered.get(name)) is not None:
            registration.advance(epoch)
            return
        try:
            self._registered[name] = self._readers.register(name, epoch, kind="view")
        except RegistrationRefused as error:
            if name not in self._refused:
                logger.warning("%s", error)
            self._refused.add(name)

    def show(self) -> None:
        """Sets the gauges: how many readers there are, and where those stand that are furthest behind.

        Raises:
          OSError: the directory cannot be listed.
        """
        now = self._clock()
        live = {
            reader.name: -1 if reader.epoch is None else reader.epoch
            for reader in self._readers.found()
            if not reader.lapsed(now, self._lease_s)
        }
        self._metrics.log_readers.set(len(live))
        shown = sorted(live, key=lambda name: (live[name], name))[:READERS_SHOWN_MAX]
        for name in shown:
            self._metrics.log_reader_epoch.labels(name).set(live[name])
        for name in self._shown - set(shown):
            self._metrics.log_reader_epoch.remove(name)
        self._shown = set(shown)
