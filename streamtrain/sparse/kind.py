"""What a kind of table is: from ids to vectors, and from gradients back to what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamtrain.log.record import TableRows
from streamtrain.sparse.admission import Admission
from streamtrain.sparse.unite import United

__all__ = ["Lookup", "TableKind"]


class Lookup(Protocol):
    """What scoring needs of a table. Any number of threads may look up while none changes the table."""

    def lookup(self, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
        """The vectors (`[N, D]` float32) of ids (`[N]` uint64, may repeat), a copy; changes nothing."""

    def rehearse(self) -> None:
        """Compiles every kernel that the table can need, on something else than itself."""


class TableKind(Lookup, Protocol):
    """A table that learns. One thread uses it.

    A step is `begin`, then `learn` and, as every table of the net came out, `keep` or `undo`; or `discard` in place of
    these; and `end` in any case. Everything else happens between steps. What it holds is a function of its settings, the seed, and what was
    done to it, bit for bit: never of memory's layout, of growth, or of restarts.

    Attributes:
      name: the table's name, part of what rows start from.
      dim: D, floats a vector.
      admission: which ids get a row; None where no rule decides that.
      resident: whether all rows must be in memory, be they in a store too.
    """

    name: str
    dim: int
    admission: Admission | None
    resident: bool

    def __len__(self) -> int:
        """Rows held."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory in use."""

    def prepare(self, united: United) -> Any:
        """What `begin` needs of ids and no row decides; for any one thread, also beside the step before. Valid as long as `united`."""

    def begin(self, united: United, prepared: Any, step: int, vectors: NDArray[np.float32]) -> None:
        """Decides which ids have rows in this step, and overwrites `vectors` (`[U, D]` float32) with what ids stand for.

        Args:
          united: the distinct ids of the minibatch; valid until its step ends.
          prepared: what `prepare` returned of them.
          step: the step's number.

        Raises:
          TableFull: no room. No step is begun, and the table is as before but for rows at their initial state.
        """

    def learn(self, gradients: NDArray[np.float32], step: int) -> bool:
        """Updates what stands for the ids of `begin` by `gradients` (`[U, D]` float32, summed over occurrences).

        Returns:
          Whether everything that came out is a number. Where not, `undo` follows.
        """

    def keep(self) -> None:
        """The step is final: the next cut reports what it changed."""

    def undo(self) -> None:
        """Takes back `learn` and `begin`: what will ever be cut is as if the step had not been there."""

    def discard(self) -> None:
        """Takes back `begin`, after which nothing was learned."""

    def at(self, step: int) -> None:
        """From now on vectors are looked up as they are at `step`; a step that ends says so by itself."""

    def end(self, step: int) -> None:
        """The step is over, whether it was kept or taken back: what is done on a schedule of steps."""

    def take_events(self) -> Mapping[str, int]:
        """What happened to ids since the last call: `admitted`, `refused`, `expired_age`, `expired_norm`, `expired_rule`."""

    def cut(self) -> TableRows:
        """What changed since the last cut, as copies: absolute rows and tombstones."""

    def expect(self, rows: int) -> None:
        """Finds memory for rows that an empty table is about to load. For any thread, also while they are loaded."""

    def load(self, values: TableRows, *, dirty: bool = False) -> None:
        """Removes the tombstones, then inserts or overwrites rows; with `dirty` the next cut reports them.

        Raises:
          TableFull: no room.
          ConfigError: the rows are of another shape than this table's.
        """

    def insert_missing(self, values: TableRows) -> int:
        """Inserts rows as the store had them, where the id has none here; returns how many. Raises as `load`."""

    def remove(self, ids: NDArray[np.uint64]) -> int:
        """Removes rows, which the next cut reports as tombstones; returns how many there were."""

    def contains(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which ids (`[N]` bool) have a row."""

    def export(self) -> TableRows:
        """A copy of all rows, without tombstones."""
