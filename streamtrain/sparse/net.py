"""SparseNet: the sparse half of a model, all of its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import ConfigError
from streamtrain.layout import Layout
from streamtrain.log.record import FilterRows, TableRows
from streamtrain.samples.batch import SampleBatch
from streamtrain.samples.schema import LEAF
from streamtrain.sparse.activations import ActivationBuffers, Gradients, SparseActivations, begin_rows
from streamtrain.sparse.admission import Admission
from streamtrain.sparse.bank import Bank, make_table
from streamtrain.sparse.collisions import Collisions
from streamtrain.sparse.dynamic import DynamicTable
from streamtrain.sparse.hashed import HashedTable
from streamtrain.sparse.kind import TableKind
from streamtrain.sparse.memory import as_input
from streamtrain.sparse.reader import SparseReader, check_padding
from streamtrain.sparse.rehearsal import ROWS, sample_batch
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.tables import AnyTable

__all__ = ["SparseNet"]


class SparseNet:
    """The embedding tables of a model: rows in, gradients out. Used by the trainer thread alone, but for `prepare`.

    A step is `forward`, then `backward` with the gradients of what forward returned, or `discard`. Everything else
    happens between steps. The same calls give the same bits, in every process.

    Orders are fixed. Rows first appear, and are reported by a cut, slot after slot in the layout's order, pooled slots
    before sequences, in a slot sample after sample. An id's gradients are summed over the pooled slots first, level after
    level from the root's on, in it row after row and in that slot after slot, then over sequence after sequence.

    Grouped samples leave the rows behind that the same samples would one by one, but for the rounding of sums: an id
    occurs in a node as often as there are samples under it.
    """

    def __init__(self, layout: Layout, tables: Mapping[str, AnyTable], seed: int) -> None:
        """Args:
          layout: the slots, and which table serves each.
          tables: by name; those of the layout.
          seed: the model's seed; rows start by hash of it, the table's name and the id.

        Raises:
          ConfigError: the system has no address space for a table's `rows_max`.
        """
        self._layout, self._settings, self._seed = layout, dict(tables), seed
        self._banks = {name: Bank(layout, make_table(name, tables[name], seed)) for name in tables}
        self._reader = SparseReader(layout, self.tables)
        self._buffers = ActivationBuffers(layout)
        # The step in flight, and the shapes that its gradients must have.
        self._flight: tuple[int, dict[str, tuple[int, ...]]] | None = None

    @property
    def tables(self) -> dict[str, TableKind]:
        """The tables by name."""
        return {name: bank.table for name, bank in self._banks.items()}

    def prepare(self, batch: SampleBatch) -> None:
        """Does beforehand what `forward` of this very object will need and no table decides; changes no bit.

        For any one thread, also beside a step in flight, between `forward` and the end of `backward`.
        """
        for bank in self._banks.values():
            bank.prepare(batch)

    def forward(
        self, batch: SampleBatch, step: int, padded: int, nodes: Sequence[int] = ()
    ) -> SparseActivations:
        """Looks up the rows of a minibatch, inserting those that are not there, and pools them.

        Args:
          batch: B samples.
          step: the step that learns from it.
          padded: P >= B, rows of the result.
          nodes: of each of the layout's levels, P_l, at least as many as the batch has.

        Returns:
          The activations; their memory is used again by the next `forward`.

        Raises:
          TableFull: a table has no room. No step is begun; rows that were inserted are at their initial state.
          ValueError: B is larger than P, or a level has more nodes than P_l.
        """
        self._between_steps()
        check_padding(batch, self._layout, padded, nodes)
        out = self._buffers.take(padded, nodes)
        begin_rows(batch, self._layout.levels, out)
        try:
            for bank in self._banks.values():
                bank.forward(batch, step, out)
        except BaseException:
            self._discard()
            raise
        arrays = out.pooled_at(self._layout.levels), {name: pair[0] for name, pair in out.sequences.items()}
        self._flight = step, _shapes(*arrays)
        return out

    def backward(
        self,
        grad_pooled: NDArray[np.float32],
        grad_sequences: Mapping[str, NDArray[np.float32]],
        step: int,
        grad_shared: Sequence[NDArray[np.float32]] = (),
    ) -> bool:
        """Learns: sums gradients per distinct id and updates each row of the minibatch once; all rows, or none.

        Where a weight or slot of any row came out as NaN or an infinity, every row of the minibatch has its old bits
        again and the next cut reports none of them for it. Rows that `forward` inserted stay, at their initial state,
        which is what they would start as again.

        Args:
          grad_pooled: `[P, W_leaf]` float32, the gradient of the activations' `pooled`; padding rows are not read.
          grad_sequences: by slot `[P_l, L, D]` float32, of the vectors; not read where the mask is 0.
          step: that of `forward`.
          grad_shared: of each of the layout's levels `[P_l, W_l]` float32, of `shared.pooled`.

        Returns:
          Whether it learned.

        Raises:
          RuntimeError: the last call was not `forward` of this step, or the gradients are not of its shapes. Nothing
            is learned, and the forward is forgotten.
        """
        flight, self._flight = self._flight, None
        pooled = dict(zip((*self._layout.levels, LEAF), (*grad_shared, grad_pooled), strict=False))
        shapes = _shapes(pooled, grad_sequences)
        if flight != (step, shapes):
            self._discard()
            raise RuntimeError(
                f"backward of step {step} with gradients {shapes} does not follow its forward, which was "
                + ("not called" if flight is None else f"step {flight[0]} with {flight[1]}")
            )
        gradients = Gradients(
            {level: as_input(array, np.float32) for level, array in pooled.items()},
            {name: as_input(array, np.float32) for name, array in grad_sequences.items()},
        )
        finite = True
        for bank in self._banks.values():
            finite &= bank.backward(gradients, step)
        for table in self.tables.values():
            if finite:
                table.keep()
            else:
                table.undo()
        self._end(step)
        return finite

    def discard(self) -> None:
        """Forgets the last `forward` without learning from it. Rows that it inserted stay, at their initial state."""
        flight, self._flight = self._flight, None
        self._discard()
        if flight is not None:
            self._end(flight[0])

    def _end(self, step: int) -> None:
        for table in self.tables.values():
            table.end(step)

    def _discard(self) -> None:
        for bank in self._banks.values():
            bank.discard()

    def score(self, batch: SampleBatch, padded: int, nodes: Sequence[int] = ()) -> SparseActivations:
        """The activations of `batch` in memory of their own, inserting nothing; see `SparseReader.score`."""
        return self._reader.score(batch, padded, nodes)

    def cut(self) -> dict[str, TableRows]:
        """By table, what changed since the last cut, as copies; see `EmbeddingTable.cut`."""
        self._between_steps()
        return {name: table.cut() for name, table in self.tables.items()}

    def at(self, step: int) -> None:
        """What is scored is scored as it would be at `step`, the next to come."""
        for table in self.tables.values():
            table.at(step)

    @property
    def resident(self) -> set[str]:
        """The tables whose rows must all be in memory, whatever a store holds."""
        return {name for name, table in self.tables.items() if table.resident}

    @property
    def needs_history(self) -> bool:
        """Whether all records since a base are needed to become the model, though its rows are in a store."""
        return bool(self.resident or self._rules())

    def cut_filters(self) -> tuple[dict[str, FilterRows], dict[str, np.ndarray]]:
        """What changed of the admission filters since the last cut, by table, and all else that rules remember, whole."""
        self._between_steps()
        rules = self._rules()
        changed = {name: rule.cut() for name, rule in rules.items()}
        state = {
            f"{name}/{key}": array for name, rule in rules.items() for key, array in rule.state().items()
        }
        return {name: rows for name, rows in changed.items() if rows is not None}, state

    def load_filters(self, filters: Mapping[str, FilterRows], state: Mapping[str, np.ndarray]) -> None:
        """Takes over what `cut_filters` returned.

        Raises:
          ConfigError: it is of another rule than the settings make.
        """
        self._between_steps()
        rules = self._rules()
        remembered: dict[str, dict[str, np.ndarray]] = {}
        for key, array in state.items():
            name, _, own = key.partition("/")
            remembered.setdefault(name, {})[own] = array
        for name in sorted({*filters, *remembered}):
            if name not in rules:
                raise ConfigError(
                    f"tables.{name}.admission: the record holds a filter of this table, the settings admit every id"
                )
            if name in filters:
                rules[name].load(filters[name])
            if name in remembered:
                rules[name].load_state(remembered[name])

    def _rules(self) -> dict[str, Admission]:
        return {name: table.admission for name, table in self.tables.items() if table.admission is not None}

    def expect(self, rows: Mapping[str, int]) -> None:
        """Finds memory for rows that empty tables are about to load; by table, how many. For any thread.

        The system takes longer to hand out the memory of millions of rows than it takes to copy them.
        """
        for name, count in rows.items():
            if name in self._banks:
                self.tables[name].expect(count)

    def load(self, tables: Mapping[str, TableRows], *, dirty: bool = False) -> None:
        """Removes tombstones and inserts or overwrites rows; see `EmbeddingTable.load`.

        Raises:
          ConfigError: a table is not in the settings, or its dim or optimizer is another.
          TableFull: a table has no room.
        """
        self._between_steps()
        if unknown := sorted(set(tables) - set(self._banks)):
            raise ConfigError(
                f"tables.{unknown[0]}: the record has rows of this table, the settings do not name it"
            )
        for name, values in tables.items():
            self._banks[name].table.load(values, dirty=dirty)

    def insert_missing(self, table: str, values: TableRows) -> int:
        """Inserts the rows whose ids are not there, as pulled from the store; see `EmbeddingTable.insert_missing`."""
        self._between_steps()
        return self._banks[table].table.insert_missing(values)

    def evict(self, table: str, ids: NDArray[np.uint64]) -> int:
        """Lets go of rows of a table with `memory_bytes_max`; see `EmbeddingTable.evict`."""
        self._between_steps()
        return self._bounded(table).evict(ids)

    def offer(self, table: str, rows: TableRows, step: int, whole: int, oldest: int) -> None:
        """Before `step`, hands over what expiry looks at after it of a store's rows; see `DynamicTable.offer`."""
        self._between_steps()
        self._bounded(table).offer(rows, step, whole, oldest)

    def without_expired(self, table: str, values: TableRows, whole: int) -> TableRows:
        """Of rows pulled for a table with `memory_bytes_max`, those that are still; see `ColdRows.without_expired`."""
        return self._bounded(table).without_expired(values, whole)

    def _bounded(self, table: str) -> DynamicTable:
        found = self._banks[table].table
        assert isinstance(found, DynamicTable), "only tables whose rows come and go have a bound on memory"
        return found

    def remove(self, table: str, ids: NDArray[np.uint64]) -> int:
        """Removes rows; the next cut reports them as tombstones; see `EmbeddingTable.remove`."""
        self._between_steps()
        return self._banks[table].table.remove(ids)

    def contains(self, table: str, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which ids (`[N]` bool) have a row."""
        return self._banks[table].table.contains(ids)

    def rows(self, table: str) -> int:
        """How many rows a table holds."""
        return len(self._banks[table].table)

    def memory_bytes(self, table: str) -> int:
        """Bytes of memory that a table's rows, index and marks take."""
        return self._banks[table].table.memory_bytes

    def collisions(self, table: str) -> Collisions | None:
        """How many ids share rows, going by the rows in memory; None where each id has a row of its own."""
        found = self._banks[table].table
        return found.collisions if isinstance(found, HashedTable) else None

    def take_figures(self, table: str) -> tuple[Mapping[str, int], Mapping[str, float]]:
        """What happened to a table's ids since the last call, by event; and what its admission filter holds now."""
        asked = self.tables[table]
        return asked.take_events(), {} if asked.admission is None else asked.admission.gauges()

    def export(self, table: str) -> TableRows:
        """A copy of all rows of a table."""
        return self._banks[table].table.export()

    def warm_up(self) -> None:
        """Compiles every kernel that a step, a cut or a load can need (or fetches it from the disk cache).

        It works on a small net of the same layout and settings; this one does not change.
        """
        for table in self.tables.values():
            table.rehearse()
        net = SparseNet(self._layout, {n: _small(s) for n, s in self._settings.items()}, self._seed)
        batch, nodes = sample_batch(self._layout), [2] * len(self._layout.levels)
        for step, gradient in enumerate((0.0, np.nan)):
            out = net.forward(batch, step, 2, nodes)
            vectors = {name: pair[0] for name, pair in out.sequences.items()}
            for array in (out.pooled, *out.shared.pooled, *vectors.values()):
                array.fill(gradient)
            net.backward(out.pooled, vectors, step, out.shared.pooled)
        net.score(batch, 2, nodes)

    def _between_steps(self) -> None:
        if self._flight is not None:
            raise RuntimeError(
                f"step {self._flight[0]} is between forward and backward; call backward or discard"
            )


def _shapes(
    pooled: Mapping[str, NDArray[np.float32]], sequences: Mapping[str, NDArray[np.float32]]
) -> dict[str, tuple[int, ...]]:
    named = {f"pooled {level}".rstrip(): array for level, array in pooled.items()}
    return {name: array.shape for name, array in (named | dict(sequences)).items()}


def _small(settings: AnyTable) -> AnyTable:
    # The rows of a hashed table decide its hashes; of those that are never touched only the address space is taken.
    return settings.model_copy(update={"rows_max": ROWS}) if isinstance(settings, TableSettings) else settings
