"""Recovery: the newest base, then the epochs after it, in order, each checked to follow the one before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

from streamtrain.errors import EpochMissing
from streamtrain.log.headstart import Headstart
from streamtrain.log.reader import LogReader
from streamtrain.log.record import EpochRecord

__all__ = ["Recovered", "Timed", "ahead", "recover", "recovered", "restored"]

Model = TypeVar("Model")


@dataclass(frozen=True, slots=True)
class Recovered:
    """Where a log stands: what the daemon continues from.

    Attributes:
      epoch: the newest epoch.
      digest: its digest, the `previous` of the next.
      step_next, samples_total, watermark_ms: as in its record.
      positions: by partition, the next offset to read.
    """

    epoch: int
    digest: str
    step_next: int
    samples_total: int
    positions: dict[str, int]
    watermark_ms: int | None


def recover(
    log: LogReader, upto: int | None = None, headstart: Headstart | None = None
) -> Iterator[EpochRecord]:
    """Yields the newest base, if any, then each epoch after it, up to `upto` or the head. Nothing of an empty log.

    Applying the records in order gives the model as it was at the last of them. Each holds mapped memory: let go of it
    before taking the next.

    Args:
      headstart: has begun to read the base, probably.

    Raises:
      CorruptRecord: a file is damaged or does not follow the one before; the message says the remedy.
      EpochMissing: `upto` is not in the log, or an epoch on the way is gone.
    """
    head = log.head()
    last = head if upto is None else upto
    if last is None:
        return
    if head is None or last > head:
        raise EpochMissing(f"{log.path} has no epoch {last} yet: its newest is {head}")
    base = _newest_base(log, last)
    if base >= 0:
        yield log.read_base(base) if headstart is None else headstart.take(log, base)
    for epoch in range(base + 1, last + 1):
        yield log.read(epoch)


def ahead(records: Iterable[EpochRecord], depth: int = 64) -> Iterator[EpochRecord]:
    """The same records, read and checked in a thread of their own while those before them are worked on.

    Args:
      depth: how many are read before they are asked for; each holds a descriptor, and mapped memory.

    Raises: what `records` raises, in its place. Let go early, it waits for the record that is being read.
    """
    source = iter(records)
    reader = ThreadPoolExecutor(1, "recovery")
    try:
        coming = deque(reader.submit(next, source, None) for _ in range(depth))
        while (record := coming.popleft().result()) is not None:
            coming.append(reader.submit(next, source, None))
            yield record
    finally:
        reader.shutdown(cancel_futures=True)


class Timed:
    """The same records, and how long they were waited for and worked on: the first, mostly a base, apart from the rest.

    Attributes:
      count: records so far.
      waited_s, worked_s: of the first, and of the rest together.
    """

    def __init__(self, records: Iterable[EpochRecord]) -> None:
        self._records = iter(records)
        self.count = 0
        self.waited_s, self.worked_s = [0.0, 0.0], [0.0, 0.0]

    def __iter__(self) -> Iterator[EpochRecord]:
        begin = perf_counter()
        for record in self._records:
            rest = int(self.count > 0)
            self.count += 1
            waited = perf_counter()
            self.waited_s[rest] += waited - begin
            yield record
            begin = perf_counter()
            self.worked_s[rest] += begin - waited

    def __str__(self) -> str:
        (first, rest), (load_first, load_rest) = self.waited_s, self.worked_s
        return (
            f"{self.count} records: the first read in {first:.3f} s, loaded in {load_first:.3f} s; "
            f"the rest waited for {rest:.3f} s, loaded in {load_rest:.3f} s"
        )


def restored(
    log: LogReader,
    restore: Callable[[Iterator[EpochRecord]], Model],
    upto: int | None = None,
    headstart: Headstart | None = None,
) -> Model:
    """What `restore` makes of the records of `recover`.

    A fold that a former daemon left behind may collect the very epochs that are being read. Then there is a newer base,
    and `restore` is called again, to begin from nothing.

    Raises: as `recover`, and what `restore` raises.
    """
    base = _newest_base(log, upto)
    while True:
        try:
            return restore(recover(log, upto, headstart))
        except EpochMissing:
            newer = _newest_base(log, upto)
            if newer == base:
                raise
            base = newer


def _newest_base(log: LogReader, upto: int | None) -> int:
    return max((base for base in log.bases() if upto is None or base <= upto), default=-1)


def recovered(log: LogReader, upto: int | None = None) -> Recovered | None:
    """Where the log stands at `upto` or its head, from one header; None of an empty log.

    Raises: as `recover`.
    """
    epoch = log.head() if upto is None else upto
    if epoch is None:
        return None
    record = log.describe(epoch)
    return Recovered(
        epoch,
        log.digest(epoch),
        record.step_next,
        record.samples_total,
        dict(record.positions),
        record.watermark_ms,
    )
