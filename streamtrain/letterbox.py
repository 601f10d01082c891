"""Keeps refused records aside before anything behind them is learned. Fail closed: what cannot be kept is waited for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from streamtrain.config import Job
from streamtrain.dead_letters.file_sink import FileSink
from streamtrain.dead_letters.letter import letters_of
from streamtrain.dead_letters.settings import DeadLetterFile
from streamtrain.dead_letters.sink import DeadLetterSink
from streamtrain.errors import BadSample, DeadLettersUnavailable
from streamtrain.kafka_connection import KafkaConnection
from streamtrain.metrics import Metrics
from streamtrain.sources import Chunk

__all__ = ["Letterbox", "sink_of"]

logger = logging.getLogger(__name__)

_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.5, 10.0


def sink_of(job: Job) -> DeadLetterSink | None:
    """What the job says keeps its dead letters; None where nothing does. Not opened yet."""
    settings = job.training.bad_samples.dead_letters
    if settings is None:
        return None
    if isinstance(settings, DeadLetterFile):
        return FileSink(settings)
    # Only where letters go to Kafka: its client takes a while to import.
    from consumers.kafka.dead_letters import TopicSink

    connection = settings.connection or job.source
    assert isinstance(connection, KafkaConnection), "the job was checked"
    return TopicSink(settings, connection, job.name)


class Letterbox:
    """Writes the refused records of each chunk to a sink, before the chunk goes on to the trainer.

    So a letter is durable before the epoch that covers its offset: a crash in between repeats it and never loses it.

    Args:
      sink: opened.
      metrics: counts.
    """

    def __init__(self, sink: DeadLetterSink, metrics: Metrics) -> None:
        self._sink, self._metrics = sink, metrics

    async def keep(self, chunk: Chunk, bad: Sequence[BadSample]) -> None:
        """Returns once the records of `chunk` that anything was refused of are durable, however long that takes."""
        if not bad:
            return
        pause_s, said = _PAUSE_FIRST_S, ""
        while True:
            try:
                count = await self._sink.write(letters_of(chunk, bad, self._sink.bytes_max))
            except DeadLettersUnavailable as error:
                if str(error) != said:
                    logger.error("training pauses: %s", error)
                said = str(error)
                self._metrics.dead_letters_unavailable.set(1)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _PAUSE_MAX_S)
            else:
                break
        self._metrics.dead_letters.inc(count)
        self._metrics.dead_letters_unavailable.set(0)
        if said:
            logger.warning("dead letters are kept again at %s, training goes on", self._sink.name)
