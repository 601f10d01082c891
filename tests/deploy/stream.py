"""A stream of clicks into Kafka that can be spoiled while it runs."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaProducer

__all__ = ["Clicks"]

_PAUSE_S = 0.1
# More than the memory of the job's table holds: some rows of each minibatch are asked of the store.
_USERS = 5000


class Clicks:
    """Sends samples in a thread of its own until the `with` block ends.

    Attributes:
      per_round: records each tenth of a second.
      late_s: how old each record says that it is.
      random_labels: labels say nothing about the features.
      bad_share: share of records that are no JSON.
    """

    def __init__(self, bootstrap_servers: str, topic: str, per_round: int = 100) -> None:
        self.per_round, self.late_s, self.random_labels, self.bad_share = per_round, 0.0, False, 0.0
        self._bootstrap_servers, self._topic = bootstrap_servers, topic
        self._random = random.Random(7)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="clicks", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._send())
        except BaseException as error:
            self._failure = error

    async def _send(self) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self._bootstrap_servers) as producer:
            while not self._stop.is_set():
                time_ms = int((time.time() - self.late_s) * 1000)
                for _ in range(self.per_round):
                    await producer.send(self._topic, self._record(), timestamp_ms=time_ms)
                await producer.flush()
                await asyncio.sleep(_PAUSE_S)

    def _record(self) -> bytes:
        if self._random.random() < self.bad_share:
            return b"no JSON"
        item = self._random.randrange(200)
        user = self._random.randrange(_USERS)
        likely = 0.5 if self.random_labels else (0.95 if item % 2 else 0.05)
        return json.dumps({"user": user, "item": item, "click": int(self._random.random() < likely)}).encode()
