"""From the source to the trainer: read, decode, prefetch rows, hand over, each beside the others. Runs on the daemon's loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from streamtrain.ahead import Ahead
from streamtrain.errors import BadSample, SourceError, SourceUnavailable
from streamtrain.letterbox import Letterbox
from streamtrain.metrics import Metrics
from streamtrain.plugins import blamed
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.decoded import DecodedChunk
from streamtrain.samples.decoder import Decoder
from streamtrain.samples.positions import LeavesLearned
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

    async def fitting(self, chunk: DecodedChunk) -> Sequence[DecodedChunk]: ...

    async def rows_for(self, batch: SampleBatch) -> Fetched: ...


class Feed:
    """Reads, decodes, fetches rows and hands over until the source ends or the task is cancelled.

    Each of these works beside the others, on chunks in their order; between two of them wait `depth` chunks at most.
    What is cancelled or fails in between gives up chunks that the trainer has not got: their positions have not moved, so
    that they are read again.

    Args:
      source: started already.
      decoder: turns chunks into columnar samples, in a thread of its own.
      guard: stops a flood of bad samples.
      handoff: where decoded chunks go.
      prefetch: brings rows from the store; None where all rows are in memory.
      metrics: counts.
      letterbox: keeps refused records; None where they are passed over.
      depth: chunks that may wait between two stages.
      learned: of the records that reading begins with, what is learned already.
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
        depth: int = 1,
        learned: LeavesLearned | None = None,
    ) -> None:
        self._letterbox = letterbox
        self._learned = learned or LeavesLearned()
        self._source, self._decoder, self._guard = source, decoder, guard
        self._handoff, self._prefetch, self._metrics = handoff, prefetch, metrics
        self._stages, self._depth = metrics.stages, depth

    async def run(self) -> None:
        """Feeds the trainer, then says that nothing follows, also when it fails or is cancelled.

        Raises: what the first stage that failed has raised, once everything that was read before it is handed over.
        """
        executor = ThreadPoolExecutor(1, "decode")
        chunks: Ahead[Chunk | DataLoss] = Ahead(self._read, self._depth, "read", self._stages)
        decode = partial(self._decode, chunks, executor)
        decoded: Ahead[DecodedChunk | DataLoss] = Ahead(decode, self._depth, "decode", self._stages)
        try:
            async with chunks, decoded:
                while (chunk := await self._decoded(decoded)) is not None:
                    for part in await self._fitting(chunk):
                        item = await self._complete(part)
                        with self._stages.waits("prefetch", "room"):
                            await self._handoff.put(item)
        finally:
            self._handoff.end()
            executor.shutdown(wait=False, cancel_futures=True)

    async def _decode(
        self, chunks: Ahead[Chunk | DataLoss], executor: ThreadPoolExecutor
    ) -> DecodedChunk | DataLoss | None:
        """The next chunk, decoded; what it refuses is counted and kept before anything that follows goes on."""
        with self._stages.waits("decode", "input"):
            chunk = await chunks.take()
        if chunk is None:
            self._guard.end()
        if isinstance(chunk, DataLoss):
            self._learned.skip(chunk.gaps)
        if chunk is None or isinstance(chunk, DataLoss):
            return chunk
        with self._stages.busy("decode"):
            loop = asyncio.get_running_loop()
            decoded = await loop.run_in_executor(executor, self._decoder.decode, chunk)
            decoded = self._learned.leave_out(decoded)
            self._report(decoded.bad)
            self._guard.see(decoded.batch.size + len(decoded.bad), decoded.bad)
        if self._letterbox is not None:
            # After the breaker: what it stops at is read again. Before the trainer: nothing is learned past a refused
            # record that is not kept.
            with self._stages.waits("decode", "room"):
                await self._letterbox.keep(chunk, decoded.bad)
        return decoded

    async def _decoded(self, decoded: Ahead[DecodedChunk | DataLoss]) -> DecodedChunk | DataLoss | None:
        with self._stages.waits("prefetch", "input"):
            return await decoded.take()

    async def _fitting(self, chunk: DecodedChunk | DataLoss) -> Sequence[DecodedChunk | DataLoss]:
        """The chunk in parts whose rows memory can hold: to the trainer each is a chunk of its own."""
        if self._prefetch is None or isinstance(chunk, DataLoss):
            return [chunk]
        with self._stages.busy("prefetch"):
            return await self._prefetch.fitting(chunk)

    async def _complete(self, chunk: DecodedChunk | DataLoss) -> Item | DataLoss:
        """What the trainer gets: a chunk with the rows that it needs."""
        if isinstance(chunk, DataLoss):
            return chunk
        if self._prefetch is None:
            return Item(chunk)
        with self._stages.busy("prefetch"):
            fetched = await self._prefetch.rows_for(chunk.batch)
        return Item(chunk, fetched.rows, fetched.evicted, fetched.whole)

    async def _read(self) -> Chunk | DataLoss | None:
        """The next chunk. A source that does not answer goes on trying by itself, and is waited for."""
        while True:
            try:
                with (
                    self._stages.busy("read"),
                    blamed(SourceError, f"source {type(self._source).__name__!r}: read"),
                ):
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
