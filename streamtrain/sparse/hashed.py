"""The hashed tables: a fixed number of rows, which ids share, alone or as parts of a vector."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streamtrain.sparse.admission import Admission
from streamtrain.sparse.collisions import Collisions, collisions
from streamtrain.sparse.combining import COMBINERS, count_occurrences
from streamtrain.sparse.hashed_ids import RowIds
from streamtrain.sparse.over_rows import OverRows
from streamtrain.sparse.rehearsal import ROWS
from streamtrain.sparse.settings import AnyInit, AnyOptimizer
from streamtrain.sparse.table import EmbeddingTable
from streamtrain.sparse.tables import Hashing
from streamtrain.sparse.unite import United, Uniter

__all__ = ["HashedTable"]

NO_ROWS = np.empty(0, np.int32)


class HashedTable(OverRows):
    """A kind of table in which an id's vector is made of the rows that it is hashed to; see `TableKind`.

    The rows are those of an ordinary table whose ids are row ids, and so they are everywhere else: in records, bases,
    deltas, the store and followers. Where this table is asked by id, `begin` and `lookup`, feature ids are meant;
    everywhere else row ids. A row exists from the first id that is hashed to it.

    Rows first appear id after id, in an id part after part; a row's gradient is summed in that order.

    Attributes:
      rows: the rows, of all parts.
    """

    admission: Admission | None = None
    """None: rows are there for every id from the start."""
    resident = False
    """A row is looked at when a minibatch names it, and not else."""

    def __init__(
        self,
        name: str,
        dim: int,
        hashing: Hashing,
        *,
        init: AnyInit,
        seed: int,
        optimizer: AnyOptimizer | None = None,
    ) -> None:
        """Args: name: the table's; dim: floats a vector; hashing: of the table; others as `EmbeddingTable`.

        Raises:
          ConfigError: the system has no address space for the rows.
        """
        rows = EmbeddingTable(
            name,
            hashing.row_dim(dim),
            init=init,
            seed=seed,
            rows_max=hashing.rows,
            optimizer=optimizer,
            hashing=hashing,
        )
        super().__init__(rows, dim)
        self._hashing = hashing
        self._row_ids = RowIds(hashing, seed, name)
        self._combine = COMBINERS[hashing.combine]
        # One holds the rows of the step in flight, the other those of the next.
        self._uniters, self._turn = (Uniter(), Uniter()), 0
        # Of the step in flight: the distinct rows, where in them those of each id are, and their weights.
        self._step_rows, self._inverse = NO_ROWS, NO_ROWS
        self._weights, self._sums = (np.empty((0, self.rows.dim), np.float32) for _ in range(2))
        self._counts = np.empty(0, np.uint32)

    @property
    def memory_bytes(self) -> int:
        return self.rows.memory_bytes

    @property
    def collisions(self) -> Collisions:
        """How many ids share rows, going by the rows in memory."""
        return collisions(self._hashing, self.rows.part_counts)

    def prepare(self, united: United) -> United:
        self._turn ^= 1
        return self._uniters[self._turn].unite(self._row_ids.of(united.ids))

    def begin(self, united: United, prepared: United, step: int, vectors: NDArray[np.float32]) -> None:
        parts = prepared
        rows = self.rows.find_or_insert(parts.ids)
        self._reserve(len(rows))
        weights = self._weights[: len(rows)]
        self.rows.gather(rows, weights)
        count_occurrences(united.occurrences, parts.inverse, self._counts[: len(rows)])
        self._combine.forward(weights, parts.inverse, vectors)
        self._step_rows, self._inverse = rows, parts.inverse

    def learn(self, gradients: NDArray[np.float32], step: int) -> bool:
        count = len(self._step_rows)
        sums = self._sums[:count]
        sums.fill(0)
        self._combine.backward(self._weights[:count], self._inverse, gradients, sums)
        return self.rows.learn(self._step_rows, sums, self._counts[:count], step)

    def at(self, step: int) -> None:
        """Nothing: these rows do not fade."""

    def end(self, step: int) -> None:
        """Nothing: rows of fixed number do not go."""

    def take_events(self) -> Mapping[str, int]:
        return {}

    def keep(self) -> None:
        self.rows.keep_learned(self._step_rows)

    def undo(self) -> None:
        """Rows that `begin` brought into use stay, at their initial state, which is what they would start as again."""
        self.rows.undo_learned(self._step_rows)

    def discard(self) -> None:
        """As `undo`: rows that came into use stay."""

    def _reserve(self, count: int) -> None:
        if count > len(self._counts):
            capacity = 1 << (count - 1).bit_length()
            self._weights, self._sums = (np.empty((capacity, self.rows.dim), np.float32) for _ in range(2))
            self._counts = np.empty(capacity, np.uint32)

    def lookup(self, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
        """The vectors (`[N, D]` float32) of ids (`[N]` uint64, may repeat), a copy; changes nothing."""
        weights = self.rows.lookup(self._row_ids.of(ids))
        if self._hashing.parts == 1:
            return weights
        vectors = np.empty((len(ids), self.dim), np.float32)
        self._combine.forward(weights, np.arange(len(weights), dtype=np.int32), vectors)
        return vectors

    def rehearse(self) -> None:
        self.rows.rehearse()
        self.lookup(np.arange(ROWS, dtype=np.uint64))
