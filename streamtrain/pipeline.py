"""From the source to the trainer: read, decode, prefetch rows, hand over. Runs on the daemon's loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from streamtrain.errors import BadSample, SourceError, SourceUnavailable
from streamtrain.letterbox import Letterbox
from streamtrain.metrics import Metrics
from streamtrain.plugins import blamed
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.decoder import Decoder
from streamtrain.sources import Chunk, DataLoss, Source
from streamtrain.store.prefetch import Fetched
from streamtrain.training.guard import BadSampleGuard
from streamtrain.training.handoff import Handoff, Item

__all__ = ["Feed", "Prefetch"]

logger = logging.getLogger(__name__)

_BAD_SAMPLES_LOGGED_MAX = 5
_UNAVAILABLE_PAUSE_S = 1.0


class Prefetch(Protocol):
    """Brings rows that a batch needs and that memory may not have, and makes room for them. Called for each batch in turn."""

    async def rows_for(self, batch: SampleBatch) -> Fetched: ...


class Feed:
    """Reads and decodes until the source ends or the task is cancelled.

    Args:
      source: started already.
      decoder: turns chunks into columnar samples, in a thread of its own.
      guard: stops a flood of bad samples.
      handoff: where decoded chunks go.
      prefetch: brings rows from the store; None where all rows are in memory.
      metrics: counts.
      letterbox: keeps refused records; None where they are passed over.
    """

    def __init__(
        self,
        source: Source,
        decoder: Decoder,
        guard: BadSampleGuard,
        handoff: Handoff,
        prefetch: Prefetch | None,
        metrics: Metrics,
        letterbox: Letterbox | None = None,
    ) -> None:
        self._letterbox = letterbox
        self._source, self._decoder, self._guard = source, decoder, guard
        self._handoff, self._prefetch, self._metrics = handoff, prefetch, metrics

    async def run(self) -> None:
        """Feeds the trainer, then says that nothing follows, also when it fails or is cancelled."""
        executor = ThreadPoolExecutor(1, "decode")
        try:
            await self._run(executor)
        finally:
            self._handoff.end()
            executor.shutdown(wait=False, cancel_futures=True)

    async def _run(self, executor: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while (chunk := await self._read()) is not None:
            if isinstance(chunk, DataLoss):
                await self._handoff.put(chunk)
                continue
            begin = time.perf_counter()
            decoded = await loop.run_in_executor(executor, self._decoder.decode, chunk)
            self._metrics.decode_seconds.inc(time.perf_counter() - begin)
            self._report(decoded.bad)
            self._guard.see(decoded.batch.size + len(decoded.bad), decoded.bad)
            if self._letterbox is not None:
                # After the breaker: what it stops at is read again. Before the trainer: nothing is learned past a
                # refused record that is not kept.
                await self._letterbox.keep(chunk, decoded.bad)
            if self._prefetch is None:
                await self._handoff.put(Item(decoded))
            else:
                fetched = await self._prefetch.rows_for(decoded.batch)
                await self._handoff.put(Item(decoded, fetched.rows, fetched.evicted))
        self._guard.end()

    async def _read(self) -> Chunk | DataLoss | None:
        """The next chunk. A source that does not answer goes on trying by itself, and is waited for."""
        while True:
            try:
                with blamed(SourceError, f"source {type(self._source).__name__!r}: read"):
                    return await self._source.read()
            except SourceUnavailable as error:
                logger.warning("reading waits: %s", error)
                await asyncio.sleep(_UNAVAILABLE_PAUSE_S)

    def _report(self, bad: Sequence[BadSample]) -> None:
        for sample in bad[:_BAD_SAMPLES_LOGGED_MAX]:
            logger.warning("refused a record: %s", sample)
        if len(bad) > _BAD_SAMPLES_LOGGED_MAX:
            logger.warning("refused %d more records of the same chunk", len(bad) - _BAD_SAMPLES_LOGGED_MAX)
        for sample in bad:
            self._metrics.bad_samples.labels(sample.reason).inc()
