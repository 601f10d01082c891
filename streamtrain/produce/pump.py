"""Moves batches into a sink, no faster than asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from streamtrain.produce.records import Message
from streamtrain.produce.sinks import Sink

__all__ = ["batch_size_for", "produce"]

_BATCHES_A_SECOND = 50
_BATCH_MAX = 1000


def batch_size_for(rate: float | None) -> int:
    """How many messages to make at a time, so that a limited rate is smooth and an unlimited one fast."""
    return _BATCH_MAX if rate is None else max(1, min(_BATCH_MAX, int(rate / _BATCHES_A_SECOND)))


async def produce(
    batches: Iterator[list[Message]],
    sink: Sink,
    *,
    rate: float | None = None,
    count_max: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Writes all batches, then flushes.

    Args:
      batches: made one at a time, in a thread, only when their turn has come.
      sink: takes them.
      rate: messages a second at most; None: as fast as it goes.
      count_max: stop after so many messages.
      progress: is told after each batch how many messages there have been in all.

    Returns:
      How many messages were written.

    Raises: what the batches and the sink raise. What was written before stays written.
    """
    loop = asyncio.get_running_loop()
    begin, count = loop.time(), 0
    while count_max is None or count < count_max:
        if rate is not None and (early := begin + count / rate - loop.time()) > 0:
            await asyncio.sleep(early)
        batch = await asyncio.to_thread(next, batches, None)
        if batch is None:
            break
        if count_max is not None:
            batch = batch[: count_max - count]
        await sink.write(batch)
        count += len(batch)
        if progress is not None:
            progress(count)
    await sink.flush()
    return count
