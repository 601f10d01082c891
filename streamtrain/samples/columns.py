"""From the columns of a table to samples: what is bad is found first, so that the rest is hashed once; vectorised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamtrain.errors import ConfigError
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.building import Builder
from streamtrain.samples.checks import LevelColumns, check_leaves, check_slots
from streamtrain.samples.fields import arrow_schema_of, fields_of
from streamtrain.samples.hashing import hash_ints
from streamtrain.samples.problems import BadLeaf, Fault, Problems
from streamtrain.samples.schema import BucketSlot, CrossSlot, Schema
from streamtrain.samples.trees import unfolded

__all__ = ["LEAVES_MAX", "Extracted", "Observer", "SampleColumns"]

LEAVES_MAX = 65_536
"""Default bound on the samples of one record."""

Observer = Callable[[str, NDArray[np.int64] | pa.Array, NDArray[np.uint64]], None]
"""Is told of a slot's namespace, the values that the good samples of a table have there, and their ids."""


class Extracted(NamedTuple):
    """The good samples of a table, and what is wrong with the others.

    Attributes:
      batch: B samples.
      records: `[B]` int64, ascending, the index of the record that each is of.
      bad: what is refused, ascending by record and leaf.
      leaves: `[B]` int64, each sample's number among the leaves of its record.
      last: `[B]` bool, whether no leaf follows it in its record.
      leaf_counts: `[R]` int64, how many samples each record has, bad ones too.
    """

    batch: SampleBatch
    records: NDArray[np.int64]
    bad: list[BadLeaf]
    leaves: NDArray[np.int64]
    last: NDArray[np.bool_]
    leaf_counts: NDArray[np.int64]


class SampleColumns:
    """Reads samples of one schema out of Arrow tables. Holds no state between calls; threads may share it.

    Args:
      schema: the samples.
      leaves_max: a record with more of them is refused.

    Attributes:
      fields: by name, the fields that the schema reads.
      arrow_schema: the columns that it wants of a codec. `extract` takes other fitting types too, and does
        without columns that are not there.
      observer: told of the values of sparse and sequence slots as they are hashed, in the thread that reads; None
        where nobody wants to know. Set before threads share it.
    """

    def __init__(self, schema: Schema, leaves_max: int = LEAVES_MAX) -> None:
        self.schema, self.leaves_max = schema, leaves_max
        self.fields = fields_of(schema)
        self.arrow_schema = arrow_schema_of(schema, self.fields)
        self.observer: Observer | None = None
        crosses = [slot for slot in schema.slots.values() if isinstance(slot, CrossSlot)]
        self._crossed = frozenset(part for slot in crosses for part in slot.of)
        self._bucket_ids = {
            name: hash_ints(np.arange(len(slot.boundaries) + 1), name)
            for name, slot in schema.slots.items()
            if isinstance(slot, BucketSlot)
        }

    def extract(
        self,
        table: pa.Table,
        times_ms: NDArray[np.int64],
        counts: NDArray[np.int64] | None = None,
        faults: Sequence[Fault] = (),
        *,
        flat: bool = False,
        labels_required: bool = True,
    ) -> Extracted:
        """The samples of a table.

        Args:
          table: its rows are samples, or trees where the schema has levels.
          times_ms: `[R]` int64, when each record reached the source; below 0 where nobody knows: its event time then.
          counts: `[R]` int64, how many rows each record has. Default: one.
          faults: what is wrong beside what the table shows.
          flat: rows are samples also where the schema has levels, and have the fields of all of them.
          labels_required: whether a sample without a label is bad; else a missing label is 0.

        Raises:
          ConfigError: a column's type does not fit the schema, or a label's column or one of children is missing.
        """
        size = len(times_ms)
        records = np.arange(size) if counts is None else np.repeat(np.arange(size), counts)
        whole = Problems(size)
        levels = [
            LevelColumns(rows, self.fields, Problems(len(rows.parents)))
            for rows in unfolded(table, records, [] if flat else self.schema.levels, whole)
        ]
        if labels_required and (
            absent := [name for name in self.schema.labels if name not in levels[-1].rows.table.column_names]
        ):
            raise ConfigError(
                f"there is no column {absent[0]!r}, which schema.labels names; correct the name"
            )
        # Of each leaf, its row at every level; the record is one more level above the root's.
        above: list[NDArray[np.int64]] = [np.arange(levels[-1].size)]
        for level in reversed(levels):
            above.insert(0, level.rows.parents[above[0]])
        record_of = above.pop(0)
        leaf_counts = np.bincount(record_of, minlength=size)
        many = np.flatnonzero(leaf_counts > self.leaves_max)
        whole.flag(
            many,
            "too_large",
            None,
            lambda row: f"the record has {leaf_counts[row]} samples; source.leaves_max is {self.leaves_max}",
        )
        self._note(faults, levels, size)
        self._check(levels, times_ms[record_of], labels_required)
        numbers = np.arange(len(record_of)) - (np.cumsum(leaf_counts) - leaf_counts)[record_of]
        keep = ~whole.bad[record_of]
        for level, rows in zip(levels, above):
            if level.problems:
                keep &= ~level.problems.bad[rows]
        bad = _refused(whole, levels, above, record_of, numbers) if not keep.all() or whole else []
        batch = self._build(levels, above, times_ms[record_of], keep)
        if not keep.all():
            record_of, numbers = record_of[keep], numbers[keep]
        last = numbers + 1 == leaf_counts[record_of]
        return Extracted(batch, record_of, bad, numbers, last, leaf_counts)

    def _note(self, faults: Sequence[Fault], levels: Sequence[LevelColumns], size: int) -> None:
        """Flags what the codec has found, in the rows that it means."""
        if not faults:
            return
        firsts, record_of = [], np.arange(size)
        for level in levels:
            record_of = record_of[level.rows.parents]
            firsts.append(np.searchsorted(record_of, np.arange(size)))
        for fault in faults:
            row = firsts[fault.depth][fault.record] + fault.node
            error = fault.error
            levels[fault.depth].problems.flag(np.array([row]), error.reason, error.field, error.detail)

    def _check(
        self, levels: Sequence[LevelColumns], times_ms: NDArray[np.int64], labels_required: bool
    ) -> None:
        """Fills the problems of every level, from the root's down."""
        crossable: dict[str, tuple[LevelColumns, NDArray[np.int64]]] = {}
        names = [level.rows.name for level in levels]
        for level in levels:
            if level is levels[-1]:
                check_leaves(level, self.schema, times_ms, labels_required=labels_required)
            crossable = {n: (other, rows[level.rows.parents]) for n, (other, rows) in crossable.items()}
            check_slots(level, self.schema, self._slots_of(level.rows.name, names), self._crossed, crossable)
            crossable |= {name: (level, np.arange(level.size)) for name in level.lengths}

    def _slots_of(self, level: str, levels: Sequence[str]) -> list[str]:
        """The slots whose rows are those of a level; where samples are not grouped, all are at their own."""
        if len(levels) == 1:
            return list(self.schema.slots)
        return [name for name in self.schema.slots if self.schema.level(name) == level]

    def _build(
        self,
        levels: Sequence[LevelColumns],
        above: Sequence[NDArray[np.int64]],
        times_ms: NDArray[np.int64],
        keep: NDArray[np.bool_],
    ) -> SampleBatch:
        """The samples that are kept, with the nodes that any of them hangs under."""
        rows = list(above)
        every = bool(keep.all())
        for depth, level in enumerate(levels):
            alive = np.zeros(level.size, np.bool_)
            alive[rows[depth][keep]] = True
            renumbered = rows[depth] if every else rows[depth][keep]
            if not alive.all():
                level.keep(alive)
                renumbered = (np.cumsum(alive) - 1)[renumbered]
            rows[depth] = renumbered
        builder = Builder(self.schema, self._bucket_ids, levels, rows)
        batch = builder.samples(times_ms if every else times_ms[keep], grouped=len(levels) > 1)
        if (observer := self.observer) is not None:
            for namespace, values, ids in builder.hashed:
                observer(namespace, values, ids)
        return batch


def _refused(
    whole: Problems,
    levels: Sequence[LevelColumns],
    above: Sequence[NDArray[np.int64]],
    record_of: NDArray[np.int64],
    numbers: NDArray[np.int64],
) -> list[BadLeaf]:
    """Whole records, and leaves, for what is wrong with the outermost of the nodes that they hang under."""
    found = [BadLeaf(record, None, whole[record]) for record in whole.rows()]
    told = whole.bad[record_of]
    for level, rows in zip(levels, above):
        if level.problems:
            for leaf in np.flatnonzero(level.problems.bad[rows] & ~told).tolist():
                error = level.problems[int(rows[leaf])]
                found.append(BadLeaf(int(record_of[leaf]), int(numbers[leaf]), error))
            told |= level.problems.bad[rows]
    return sorted(found, key=lambda bad: (bad.record, bad.leaf or 0))
