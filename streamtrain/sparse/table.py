"""One embedding table: index, arena, row optimizer and the changes since the last epoch cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import ConfigError
from streamtrain.log.record import TableRows
from streamtrain.sparse.arena import Arena, fill_absent, gather_weights, start_tails
from streamtrain.sparse.cold import taken
from streamtrain.sparse.copies import Copies
from streamtrain.sparse.crew import pieces, share
from streamtrain.sparse.decay import RowDecay
from streamtrain.sparse.direct import DirectIndex
from streamtrain.sparse.dirty import DirtyRows
from streamtrain.sparse.index import IdSet, Index
from streamtrain.sparse.init import Initializer
from streamtrain.sparse.lifecycle_settings import Decay, Unadmitted
from streamtrain.sparse.memory import as_input, populate
from streamtrain.sparse.optimizers import restore, row_optimizer, statistics_of
from streamtrain.sparse.part_init import PartInitializer
from streamtrain.sparse.rehearsal import ROWS
from streamtrain.sparse.settings import AnyInit, AnyOptimizer
from streamtrain.sparse.tables import Hashing
from streamtrain.sparse.turns import rows_in_turn

__all__ = ["EmbeddingTable"]

ROWS_LIMIT = 2**31 - 1
MARK_BYTES = 4
# So many at a time: who loads the rows meanwhile waits for the system no longer than that takes.
EXPECTED_ROWS = 1 << 18
COMPACT_ROWS = 4096
"""As many row numbers go at once, which takes about a millisecond; for each row that is removed with it, four more."""


class EmbeddingTable:
    """The rows of one or more slots. What it holds depends on what was done to it, never on row numbers or growth.

    With an optimizer it learns; without, it holds weights only (K = 0), for serving. One thread may write; `lookup` and
    `contains` may run in any number of threads while none writes.

    Attributes:
      name: the table's name, part of what rows start from.
      dim: D, weights a row.
      slots: K, floats of optimizer state a row.
    """

    def __init__(
        self,
        name: str,
        dim: int,
        *,
        init: AnyInit,
        seed: int,
        rows_max: int,
        optimizer: AnyOptimizer | None = None,
        hashing: Hashing | None = None,
        unadmitted: Unadmitted | None = None,
        decay: Decay | None = None,
    ) -> None:
        """Args:
          init: how a row starts.
          seed: the model's seed.
          rows_max: bound on rows; address space, not memory, is reserved for it.
          optimizer: how rows learn; None holds weights only.
          hashing: where ids are row ids of a hashed table, which has `rows_max` of them: no index is kept.
          unadmitted: what all ids without a row look like; None: each like the row that it would start with.
          decay: how rows fade.

        Raises:
          ConfigError: the system has no address space for `rows_max` rows.
        """
        label = f"table {name!r}"
        self.name, self.dim = name, dim
        self._init, self._seed, self._learning = init, seed, optimizer
        self._optimizer = None if optimizer is None else row_optimizer(optimizer, dim)
        self.slots = 0 if self._optimizer is None else self._optimizer.slots
        self._hashing, self._unadmitted, self._fading = hashing, unadmitted, decay
        self._index: Index | DirectIndex
        if hashing is None:
            self._initializer, self._index = Initializer(init, seed, name), Index(label, rows_max)
        else:
            assert rows_max == hashing.rows
            self._initializer = PartInitializer(init, seed, name, hashing)
            self._index = DirectIndex(label, hashing.sizes)
        self._absent = None if unadmitted is None else self._shared_vector(unadmitted)
        self._arena = Arena(label, dim, self.slots, rows_max)
        self._copies = Copies()
        self._decay = None
        if decay is not None:
            self._decay = RowDecay(decay, 0 if optimizer is None else statistics_of(optimizer, dim))
        self._step = 0
        # What rows were before `learn`, and before they faded in it.
        self._before = self._unfaded = self._row_copies(0)
        self._dirty = DirtyRows(label, rows_max)
        self._removed = IdSet(f"{label}, rows removed in this epoch,", min(2 * rows_max, ROWS_LIMIT))

    def _shared_vector(self, unadmitted: Unadmitted) -> NDArray[np.float32]:
        vector = np.zeros((1, self.dim), np.float32)
        if unadmitted == "initial":
            shared = Initializer(self._init, self._seed, self.name, shared=True)
            shared.fill(
                vector,
                self.dim,
                as_input(np.zeros(1), np.uint64),
                np.zeros(1, np.int32),
                np.ones(1, np.bool_),
            )
        return vector[0]

    def __len__(self) -> int:
        return len(self._index)

    def empty_twin(self, rows_max: int) -> EmbeddingTable:
        """A table of the same settings but for `rows_max`, which hashed rows keep, without rows."""
        return EmbeddingTable(
            self.name,
            self.dim,
            init=self._init,
            seed=self._seed,
            rows_max=rows_max if self._hashing is None else self._hashing.rows,
            optimizer=self._learning,
            hashing=self._hashing,
            unadmitted=self._unadmitted,
            decay=self._fading,
        )

    def rehearse(self) -> None:
        """Compiles every kernel, by doing to an empty twin whatever can be done to a table."""
        twin = self.empty_twin(ROWS)
        ids = np.arange(ROWS if self._hashing is None else min(ROWS, self._hashing.sizes[0]), dtype=np.uint64)
        twin.find_or_insert(ids)
        twin.evict(ids[:1])
        twin.load(twin.export(), dirty=True)
        twin.remove(ids[len(ids) // 16 :])
        twin.compact(least=1)
        twin.insert_missing(twin.cut())
        twin.lookup(ids)

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory in use, near enough: what was ever touched of the reserved, and the index."""
        rows = self._index.rows_high * (self._arena.row_bytes + MARK_BYTES)
        return rows + self._index.memory_bytes + self._dirty.memory_bytes + self._removed.memory_bytes

    @property
    def index_bytes(self) -> int:
        """Of these, the bytes that find rows."""
        return self._index.memory_bytes

    @property
    def part_counts(self) -> list[int]:
        """By part of a hashed table, the rows in use."""
        return [len(self._index)] if isinstance(self._index, Index) else self._index.counts

    def contains(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which ids (`[N]` bool) have a row."""
        return self._index.find(ids) >= 0

    def lookup(self, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
        """The vectors (`[N, D]` float32) of ids (`[N]` uint64), a copy; inserts nothing.

        An id that has no row gets its initial vector, which is what the trainer would start it with, or in a table with
        admission what all unadmitted ids share.
        """
        ids = as_input(ids, np.uint64)
        rows = self._index.find(ids)
        vectors = np.empty((len(ids), self.dim), np.float32)
        self.gather(rows, vectors)
        if self._absent is None:
            places = np.arange(len(ids), dtype=np.int32)
            self._initializer.fill(vectors, self.dim, ids, places, rows < 0)
        return vectors

    def gather(self, rows: NDArray[np.int32], vectors: NDArray[np.float32]) -> None:
        """Overwrites `vectors` (`[N, D]` float32) with the weights of rows (`[N]` int32), as they are at the step of `at`.

        Those below 0 get what unadmitted ids share; in a table without admission, any values.
        """
        share(lambda first, end: self._gather(rows[first:end], vectors[first:end]), pieces(len(rows)))

    def _gather(self, rows: NDArray[np.int32], vectors: NDArray[np.float32]) -> None:
        gather_weights(self._arena.words, rows, vectors)
        if self._decay is not None:
            self._decay.fade(vectors, self._arena.bits, rows, self._step)
        if self._absent is not None:
            fill_absent(rows, self._absent, vectors)

    def at(self, step: int) -> None:
        """From now on rows that decay are seen as they are at `step`; nobody may look up meanwhile."""
        self._step = step

    def find(self, ids: NDArray[np.uint64]) -> NDArray[np.int32]:
        """The rows (`[N]` int32) of ids (`[N]` uint64), -1 for those that have none."""
        return self._index.find(ids)

    def find_or_insert(self, ids: NDArray[np.uint64]) -> NDArray[np.int32]:
        """The rows (`[N]` int32) of ids (`[N]` uint64); those that are not there get one, at its initial state.

        A row is not dirty by being inserted: until it learns, it is what it would start as again.

        Raises:
          TableFull: the table has no room. It stays consistent; some of the ids are in it.
        """
        # Threads find together; to insert is for one, and in the steady state there is little of it.
        rows = self.find(ids)
        absent = np.flatnonzero(rows < 0)
        if len(absent):
            rows[absent] = self._claim(as_input(ids[absent], np.uint64), None)[0]
        return rows

    def withdraw(self, ids: NDArray[np.uint64]) -> None:
        """Takes rows back that were inserted and never learned, of which no cut has told."""
        self._dirty.unmark(self._index.erase(ids))

    def in_turn(self, step: int, every: int) -> TableRows:
        """Copies of the rows whose turn it is at `step`, each being it once in `every` steps, in the order of their tags."""
        assert isinstance(self._index, Index), "hashed rows do not come and go"
        rows = rows_in_turn(self._index, step, every)
        return self._arena.gather(self._index.ids_of(rows), rows)

    def fade(self, rows: TableRows, step: int) -> None:
        """Makes copies of rows, in place, what they are at `step`; their last steps stay."""
        if self._decay is not None:
            self._decay.fade_columns(rows.weights, rows.slots, rows.last_steps, step)

    def _claim(
        self, ids: NDArray[np.uint64], values: TableRows | None
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_], int]:
        """Gives ids rows; those inserted get their place in `values`, or their initial state.

        Returns:
          `[N]` int32, the rows; `[N]` bool, whether the id was inserted; how many were.

        Raises:
          TableFull: no room; whatever row was inserted before that has its values.
        """
        rows, fresh = np.empty(len(ids), np.int32), np.zeros(len(ids), np.bool_)
        inserted = len(ids)
        try:
            inserted = self._index.find_or_insert(ids, rows, fresh)
        finally:
            if inserted and values is None:
                self._start(ids, rows, fresh)
            elif inserted and values is not None:
                self._arena.scatter(rows, values, fresh)
        return rows, fresh, inserted

    def _start(self, ids: NDArray[np.uint64], rows: NDArray[np.int32], fresh: NDArray[np.bool_]) -> None:
        self._initializer.fill(self._arena.words, self.dim, ids, rows, fresh)
        if self._optimizer is not None:
            self._optimizer.start(self._arena.words, self.dim, rows, fresh)
        # What decays does so from its first step on, not from step 0.
        start_tails(
            self._arena.bits, rows, fresh, np.uint32(0 if self._decay is None else self._step & 0xFFFFFFFF)
        )

    def learn(
        self,
        rows: NDArray[np.int32],
        gradients: NDArray[np.float32],
        occurrences: NDArray[np.uint32],
        step: int,
    ) -> bool:
        """Takes one step of the row optimizer. Follow it with `keep_learned` or `undo_learned` before anything else.

        Args:
          rows: `[U]` int32, from `find_or_insert`; distinct but for those below 0, which are passed over.
          gradients: `[U, D]` float32, summed over each row's occurrences.
          occurrences: `[U]` uint32; added to the rows' counts, which saturate.
          step: becomes their last step, modulo 2^32.

        Returns:
          Whether every weight and slot that came out is a number. Where not, the step has to be undone.
        """
        assert self._optimizer is not None, f"table {self.name!r} holds weights only"
        assert gradients.shape == (len(rows), self.dim) and len(occurrences) == len(rows)
        last_step = np.uint32(step & 0xFFFFFFFF)
        if len(rows) > len(self._before):
            self._before = self._row_copies(len(rows))
            self._unfaded = self._before if self._decay is None else self._row_copies(len(rows))
        words, bits, optimizer = self._arena.words, self._arena.bits, self._optimizer

        def update(first: int, end: int) -> bool:
            own, before = rows[first:end], self._before[first:end]
            if self._decay is not None:
                self._decay.fade_rows(words, bits, self.dim, own, step, self._unfaded[first:end])
            return optimizer.update(
                words, bits, own, gradients[first:end], occurrences[first:end], last_step, before
            )

        return all(share(update, pieces(len(rows))))

    def _row_copies(self, count: int) -> NDArray[np.uint32]:
        return np.empty((1 << (count - 1).bit_length() if count else 0, self._arena.bits.shape[1]), np.uint32)

    def keep_learned(self, rows: NDArray[np.int32]) -> None:
        """The rows (`[U]` int32, those of the last `learn`) are changed: the next cut reports them."""
        self._dirty.mark(rows)

    def undo_learned(self, rows: NDArray[np.int32]) -> None:
        """The rows (`[U]` int32, those of the last `learn`) hold again, bit for bit, what they held before it."""
        restore(self._arena.bits, rows, self._unfaded)

    def cut(self) -> TableRows:
        """What changed since the last cut, as copies: learned rows in the order of their first change, and tombstones.

        A row that was removed and has learned again since is a row, not a tombstone.
        """
        rows = self._dirty.take()
        ids = self._index.ids_of(rows)
        values = self._arena.gather(ids, rows, self._copies)
        if not len(self._removed):
            return values
        removed = self._removed.ids()
        self._removed.clear()
        tombstones = removed[~np.isin(removed, ids)]
        return TableRows(ids, values.weights, values.slots, values.counts, values.last_steps, tombstones)

    def copies(self, ids: NDArray[np.uint64]) -> TableRows:
        """Copies of the rows of ids (`[N]` uint64); those that have none here are passed over."""
        ids = as_input(ids, np.uint64)
        rows = self._index.find(ids)
        there = rows >= 0
        return self._arena.gather(ids[there], rows[there])

    def export(self) -> TableRows:
        """A copy of every row, in the order of row numbers. No tombstones."""
        rows = self._index.live_rows()
        return self._arena.gather(self._index.ids_of(rows), rows)

    def expect(self, rows: int) -> None:
        """Finds memory for rows that an empty table is about to load. For any thread, also while they are loaded."""
        if isinstance(self._index, Index):
            self._index.expect(rows)
        for first in range(0, rows, EXPECTED_ROWS):
            populate(self._arena.words, first, min(first + EXPECTED_ROWS, rows))

    def load(self, values: TableRows, *, dirty: bool = False) -> None:
        """Removes the tombstones, then inserts or overwrites rows.

        Args:
          values: absolute rows.
          dirty: whether the next cut reports them, as if they had been learned here.

        Raises:
          TableFull: no room. Rows that are in the table have either their old or their new values.
          ConfigError: the rows have another dim or other optimizer slots than this table.
        """
        self._check(values)
        # Those that go make room for those that come: a record has no id twice.
        if dirty:
            self.remove(values.tombstones)
        else:
            self._dirty.unmark(self._index.erase(values.tombstones))
        if len(values.tombstones):
            self.compact(len(values.tombstones))
        # Ids of a record are distinct, so all of them will be in the table: this is never too much.
        self._index.make_room(len(values.ids))
        rows, fresh, _ = self._claim(values.ids, values)
        self._arena.scatter(rows, values, ~fresh)
        if dirty:
            self._dirty.mark(rows)
        elif len(self._removed):
            self._removed.remove(values.ids)

    def insert_missing(self, values: TableRows) -> int:
        """Inserts the rows whose ids are not there; those that are, and those removed since the last cut, stay so.

        Returns:
          How many were inserted. They are not dirty. Tombstones are passed over.

        Raises: as `load`.
        """
        self._check(values)
        if len(self._removed):
            values = taken(values, ~self._removed.contains(values.ids))
        return self._claim(values.ids, values)[2]

    def evict(self, ids: NDArray[np.uint64]) -> int:
        """Lets go of rows that a store has as they are; returns how many. No cut tells of it.

        A row that changed since the last cut is in no store yet, and stays.
        """
        ids = as_input(ids, np.uint64)
        rows = self._index.find(ids)
        there = rows >= 0
        there[there] = ~self._dirty.marked(rows[there])
        self._index.erase(ids[there])
        return int(np.count_nonzero(there))

    def remove(self, ids: NDArray[np.uint64]) -> int:
        """Removes rows; returns how many there were. The next cut reports them as tombstones.

        Raises:
          TableFull: more ids were removed since the last cut than twice `rows_max`; nothing was removed now.
        """
        ids = as_input(ids, np.uint64)
        return self.bury(ids[self.contains(ids)])

    def bury(self, ids: NDArray[np.uint64]) -> int:
        """As `remove`, of rows that may be in a store alone: the next cut reports every id as a tombstone.

        Returns:
          How many of the rows were here.
        """
        ids = as_input(ids, np.uint64)
        self._removed.add_missing(ids)
        rows = self._index.erase(ids)
        self._dirty.unmark(rows)
        return int(np.count_nonzero(rows >= 0))

    def compact(self, removed: int = 0, least: int | None = None) -> None:
        """Where fewer than two thirds of the rows are in use, moves some from the end to the front and gives memory back.

        Row numbers from before are void.

        Args:
          removed: how many rows were removed just now: memory follows them as quickly as they go.
          least: so many row numbers go, or none: the memory of a few is not worth the move. Default: COMPACT_ROWS.
        """
        least = COMPACT_ROWS if least is None else least
        high, low = self._index.rows_high, len(self._index) * 3 // 2
        if not isinstance(self._index, Index) or high - low < least:
            return
        end = max(low, high - least - 4 * removed)
        sources, targets = self._index.compact(end)
        self._arena.move(sources, targets)
        self._dirty.renumber(sources, targets)
        self._arena.give_back(end, high)
        self._dirty.give_back(end, high)

    def _check(self, values: TableRows) -> None:
        columns = (values.weights, values.slots, values.counts, values.last_steps)
        assert {len(column) for column in columns} == {len(values.ids)}, "kernels check no bounds"
        found = (values.weights.shape[1], values.slots.shape[1])
        if found != (self.dim, self.slots):
            raise ConfigError(
                f"tables.{self.name}: the rows have {found[0]} weights and {found[1]} optimizer floats, the settings "
                f"say {self.dim} and {self.slots}; dim and optimizer of a model that has learned cannot change"
            )
