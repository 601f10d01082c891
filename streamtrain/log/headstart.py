"""The newest base, read and checked in a thread of its own while the rest of a daemon is still being imported.

Of a start with ten million rows the check is the longest part that needs nothing but the log's path, and importing leaves
a core free.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from streamtrain.errors import StreamtrainError
from streamtrain.log.reader import LogReader
from streamtrain.log.record import EpochRecord

__all__ = ["Headstart"]

logger = logging.getLogger(__name__)


class Headstart:
    """One read of the newest base, begun when this is made. Nothing is acted upon before `take`.

    Whatever fails in it is left for who asks to find: a log that is not there yet, or a damaged base, is no fault here.
    The thread ends with the process: a stop does not wait for it.
    """

    def __init__(self, path: Path | str) -> None:
        """Args: path: of the log; it may be missing."""
        self._read: Future[tuple[str, EpochRecord]] | None = Future()
        threading.Thread(target=self._run, args=(path, self._read), name="headstart", daemon=True).start()

    @staticmethod
    def _run(path: Path | str, read: Future[tuple[str, EpochRecord]]) -> None:
        try:
            log = LogReader.open(path)
            read.set_result((log.model.model_id, log.read_base(max(log.bases(), default=-1))))
        except BaseException as error:
            read.set_exception(error)

    def take(self, log: LogReader, epoch: int) -> EpochRecord:
        """As `log.read_base(epoch)`. Where that base is being read already, it waits for it; then it is forgotten here.

        Raises: as `read_base`.
        """
        read, self._read = self._read, None
        with suppress(StreamtrainError):
            if read is not None:
                model, record = read.result()
                if (model, record.epoch) == (log.model.model_id, epoch):
                    return record
        return log.read_base(epoch)
