"""The account of a soak with restarts: whether the log's epochs hold every record once, and for how long nothing new came."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from streamtrain.log.record import EpochRecord

__all__ = ["Ledger", "longest_pause_s"]

_FAULTS_MAX = 20


class Ledger:
    """Adds up the epochs of a log, in order, before they are collected. The source holds one sample a record.

    Attributes:
      samples: that their spans hold.
      next_epoch: the one to add next.
      commits_ms: when each epoch with samples was committed, milliseconds since 1970.
      faults: the first of what does not fit: a gap between spans (lost), an overlap (doubled), a sample that is not counted.
    """

    def __init__(self) -> None:
        self.samples = self.next_epoch = 0
        self.commits_ms: list[int] = []
        self.faults: list[str] = []
        self._next: dict[str, int] = {}

    def add(self, record: EpochRecord) -> None:
        """Takes the next epoch."""
        self._expect(record.epoch == self.next_epoch, f"epoch {record.epoch} follows {self.next_epoch - 1}")
        self.next_epoch = record.epoch + 1
        for _, partition, (first, _), (next_, _), samples in record.spans:
            expected = self._next.get(partition, 0)
            where = f"epoch {record.epoch}: {partition}"
            self._expect(first == expected, f"{where} goes on at {first}, not at {expected}")
            self._expect(
                samples == next_ - first, f"{where} has {samples} samples of {next_ - first} records"
            )
            self._next[partition] = next_
            self.samples += samples
        counted = f"epoch {record.epoch} counts {record.samples_total} samples, spans hold {self.samples}"
        self._expect(record.samples_total == self.samples, counted)
        if record.samples:
            self.commits_ms.append(record.committed_at_ms)

    def _expect(self, holds: bool, fault: str) -> None:
        if not holds and len(self.faults) < _FAULTS_MAX:
            self.faults.append(fault)


def longest_pause_s(at_ms: Sequence[int], begin_ms: int, end_ms: int) -> float:
    """The longest time between two of `at_ms` (ascending) of which any part lies between `begin_ms` and `end_ms`; 0 of none."""
    pauses = (later - earlier for earlier, later in pairwise(at_ms) if later > begin_ms and earlier < end_ms)
    return max(pauses, default=0) / 1000
