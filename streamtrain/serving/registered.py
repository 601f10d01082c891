"""A follower's registration in the export directory that it follows: the deltas that it has not applied yet stay there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from streamtrain.errors import RegistrationRefused
from streamtrain.log.readers import Readers, Registration

__all__ = ["Registered"]

_LOG = logging.getLogger(__name__)


class Registered:
    """Registers where it can. Where it cannot, following goes on as without: far behind, it loads a base.

    Args:
      directory: the export; it need not exist yet.
      name: under which the follower is registered; None: not at all. Each follower has a name of its own.
      clock: seconds since 1970.
    """

    def __init__(self, directory: Path, name: str | None, clock: Callable[[], float]) -> None:
        self._readers, self._name = Readers(directory, clock=clock), name
        self._registration: Registration | None = None
        self._told = False

    def before_reading(self, epoch: int | None) -> None:
        """To be called before the manifest is read: what a follower decides on is kept from then on.

        Args:
          epoch: of the version held; None: it is still to load a base.
        """
        if self._name is None or self._registration is not None:
            return
        try:
            self._registration = self._readers.register(self._name, epoch, kind="follower")
        except RegistrationRefused as error:
            if not self._told:
                _LOG.warning("%s", error)
            self._told = True

    def at(self, epoch: int) -> None:
        """The version held, which also says that the follower lives: to be called at every look."""
        if self._registration is not None:
            self._registration.advance(epoch)

    def leave(self) -> None:
        """Lets go of everything, until the next `before_reading`."""
        if self._registration is not None:
            self._registration.leave()
            self._registration = None
