"""What one epoch record (or base) holds, in memory. `docs/epoch-log.md` specifies it on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["EpochRecord", "FilterRows", "SpanTable", "TableRows"]


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of one embedding table as absolute values, and ids removed.

    Attributes:
      ids: `[R]` uint64, distinct.
      weights: `[R, D]` float32.
      slots: `[R, K]` float32, the row optimizer's state; K may be 0.
      counts: `[R]` uint32, occurrences learned from (saturating).
      last_steps: `[R]` uint32, step of the last update, modulo 2^32.
      tombstones: `[T]` uint64, ids removed; disjoint from `ids`.
    """

    ids: NDArray[np.uint64]
    weights: NDArray[np.float32]
    slots: NDArray[np.float32]
    counts: NDArray[np.uint32]
    last_steps: NDArray[np.uint32]
    tombstones: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    @staticmethod
    def empty(dim: int, slots: int) -> TableRows:
        """No rows, of a table of `dim` weights and `slots` optimizer floats a row."""
        return TableRows(
            np.empty(0, np.uint64),
            np.empty((0, dim), np.float32),
            np.empty((0, slots), np.float32),
            np.empty(0, np.uint32),
            np.empty(0, np.uint32),
        )


@dataclass(frozen=True, slots=True)
class FilterRows:
    """Parts of one table's admission filter as absolute values, and parts that are empty again.

    Attributes:
      ids: `[R]` uint64, distinct: ids that are counted, or numbers of blocks of counters, as the rule has it.
      values: `[R, W]` uint8, W >= 1: what each of them holds.
      tombstones: `[T]` uint64, those that hold nothing any more; disjoint from `ids`.
    """

    ids: NDArray[np.uint64]
    values: NDArray[np.uint8]
    tombstones: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))


@dataclass(frozen=True, slots=True)
class SpanTable:
    """The spans that made up every minibatch of an epoch, in order: enough to replay it.

    Attributes:
      partitions: names that `spans` refers to by index.
      spans: `[n, 5]` int64 columns: step, partition index, first offset, next offset, good samples.
      quarantined: `[q]` int64, ascending: the steps of these whose minibatch was quarantined, so that nothing was
        learned from it.
      leaves: `[n, 2]` int64 columns: how many leaves of the record at the first offset the span leaves out, and how many
        of the one at the next offset it takes; 0 where records are whole. `[0, 2]`: all are.
    """

    partitions: tuple[str, ...] = ()
    spans: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 5), np.int64))
    quarantined: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    leaves: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))

    def __iter__(self) -> Iterator[tuple[int, str, tuple[int, int], tuple[int, int], int]]:
        """Per span: step, partition, (offset, leaf) of its begin and of its end, good samples."""
        leaves = self.leaves if len(self.leaves) else np.zeros((len(self.spans), 2), np.int64)
        for (step, index, first, next_, samples), (first_leaf, next_leaf) in zip(
            self.spans.tolist(), leaves.tolist(), strict=True
        ):
            yield step, self.partitions[index], (first, first_leaf), (next_, next_leaf), samples


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """Everything that one epoch of learning changed, or (a base) everything there is at its epoch.

    Attributes:
      epoch: its number; 0 is the genesis of a model, written before the first sample.
      previous: hex digest of the record before it; "" for epoch 0. In a base: the digest of epoch `epoch`.
      step_first, step_next: steps step_first <= s < step_next were taken in it.
      samples: samples learned in it.
      samples_total: samples learned by the model up to its end.
      bad_samples: records refused in its spans.
      quarantined_minibatches, quarantined_samples: how many of its minibatches were quarantined, and their samples.
      restores: of a rollback, the epoch whose model this one is; else None.
      undone_samples: of a rollback, how many of the samples learned before it are not in the model any more; below 0
        where it returns to an epoch that had been undone.
      positions: by partition, the next offset to read.
      leaves: by partition, how many leaves of the record at its position are learned; without those where none is.
      spans: the minibatches.
      event_time_ms: (min, max) of the samples' event times, or None where it has no sample.
      record_time_ms: (min, max) of when the records reached the source, or None.
      watermark_ms: the largest event time seen by the model so far, or None.
      committed_at_ms: wall clock of the writer, milliseconds since 1970. Informative only.
      writer: who wrote it (host, process, incarnation). Informative only.
      tables: by name, the changed rows.
      dense: by name, the dense parameters and optimizer state, whole.
      metrics: by name, the accumulators of prequential evaluation, whole.
      filters: by name of the table, what changed of its admission filter.
      rules: by `table/name`, the state of users' own admission rules, whole.
      notes: small free-form facts for the lineage (restart, configuration change), str to str.
    """

    epoch: int
    previous: str
    step_first: int
    step_next: int
    samples: int
    samples_total: int
    positions: Mapping[str, int]
    tables: Mapping[str, TableRows]
    dense: Mapping[str, np.ndarray]
    metrics: Mapping[str, np.ndarray]
    filters: Mapping[str, FilterRows] = field(default_factory=dict)
    rules: Mapping[str, np.ndarray] = field(default_factory=dict)
    spans: SpanTable = SpanTable()
    bad_samples: int = 0
    quarantined_minibatches: int = 0
    quarantined_samples: int = 0
    restores: int | None = None
    undone_samples: int = 0
    event_time_ms: tuple[int, int] | None = None
    record_time_ms: tuple[int, int] | None = None
    watermark_ms: int | None = None
    committed_at_ms: int = 0
    writer: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    leaves: Mapping[str, int] = field(default_factory=dict)

    def without_arrays(self) -> EpochRecord:
        """The record for who needs its facts alone: it holds no memory."""
        return replace(self, tables={}, filters={}, rules={}, dense={}, metrics={})
