"""The contract of a row store."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from streamtrain.log.record import EpochRecord, TableRows

__all__ = ["FORMAT", "Store", "StoreDescription", "StoreInfo", "Unused"]

FORMAT = 1
"""Of keys and values in the store; `docs/store.md`."""

_MODEL_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class StoreDescription:
    """What a store holds rows of. But for `scanned` it never changes for a model.

    Attributes:
      model_id: 1 to 64 of letters, digits, `.`, `_` and `-`.
      tables: by name, (floats of weights, floats of optimizer slots) of a row.
      shards: slices of every table.
      scanned: tables that `Store.scan` is asked for. A store that was filled for others may have to be filled again.
    """

    model_id: str
    tables: Mapping[str, tuple[int, int]]
    shards: int
    scanned: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        # A brace in the id would change the hash tag, and so split a shard over nodes.
        if not _MODEL_ID.fullmatch(self.model_id):
            raise ValueError(f"model_id {self.model_id!r} is not 1 to 64 letters, digits, '.', '_' or '-'")
        if not self.tables or not 1 <= self.shards <= 1024:
            raise ValueError(f"a store has one table or more and 1 to 1024 shards, not {self.shards}")

    def text(self) -> str:
        """The same for the same description but for `scanned`; each shard keeps it, and refuses another."""
        tables = {name: list(self.tables[name]) for name in sorted(self.tables)}
        return json.dumps({"format": FORMAT, "shards": self.shards, "tables": tables}, sort_keys=True)

    def refusal(self, filled: bytes) -> str:
        """Why a store that was filled by another description is not taken, and how that ends without its rows being removed.

        Args:
          filled: the other's `text`.
        """
        text = filled.decode(errors="replace")
        with suppress(AttributeError, ValueError):
            if (found := json.loads(text).get("format")) != FORMAT:
                return (
                    f"was filled in format {found!r} by another version of streamtrain, and this one has format {FORMAT}; run "
                    "that version"
                )
        return f"was filled as {text}, but this configuration says {self.text()}; bring back the old settings"


@dataclass(frozen=True, slots=True)
class Unused:
    """Rows that were not updated for a while.

    Attributes:
      step: when they are looked at, modulo 2^32.
      steps: for more than so many steps, below 2^31.
    """

    step: int
    steps: int

    def among(self, last_steps: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which rows (`[N]` bool), by their last steps."""
        return np.uint32(self.step) - last_steps > np.uint32(self.steps)


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What the servers say of themselves, for metrics.

    Attributes:
      version: of the oldest server.
      servers: how many hold shards.
      memory_bytes: used by all of them together, whoever uses it.
      memory_bytes_max: their bounds together; 0 where one has none.
    """

    version: str
    servers: int
    memory_bytes: int
    memory_bytes_max: int


class Store(Protocol):
    """Rows of all shards, applied from the epoch log. All methods run on one loop.

    Each call is bounded in time and in what is in flight, and may be repeated: after StoreUnavailable, a
    cancellation or a crash the store holds a prefix of the work, and the same call again completes it.
    """

    async def open(self, description: StoreDescription) -> None:
        """Connects, checks the servers, and claims empty shards for the model.

        Raises:
          StoreRefused: a server is too old, may evict rows or forbids a command, or a shard holds another model's rows.
          StoreUnavailable: a server does not answer.
        """
        ...

    async def applied_epochs(self) -> dict[int, int | None]:
        """By shard, the epoch up to which its rows are whole; None where it holds nothing that can be trusted.

        Raises: as `open`.
        """
        ...

    async def applied_epoch(self) -> int | None:
        """The smallest of `applied_epochs`, None where one of them is.

        Raises: as `open`.
        """
        ...

    async def apply(self, record: EpochRecord) -> None:
        """Brings every shard from the epoch before the record's to the record's. Shards that have it stay as they are.

        Raises:
          StoreBehind: a shard is not at the epoch before; the others have applied the record.
          StoreRefused, StoreUnavailable: as `open`.
        """
        ...

    async def load_base(self, base: EpochRecord) -> None:
        """Repairs: replaces shards that are behind the base, or hold nothing, by its rows. Others stay as they are.

        Raises:
          StoreRefused: also where another writer is loading a newer base.
          StoreUnavailable: as `open`.
        """
        ...

    async def pull(
        self, table: str, ids: NDArray[np.uint64], epoch_min: int = 0
    ) -> tuple[NDArray[np.bool_], TableRows]:
        """Reads rows.

        Args:
          table: which table.
          ids: `[N]` uint64, in any order; may repeat.
          epoch_min: the epoch that every shard asked must have reached.

        Returns:
          found: `[N]` bool; False says for certain that there is no such row.
          rows: of the ids found, in the order of `ids`.

        Raises:
          StoreBehind: a shard has not reached `epoch_min`, or holds nothing that can be trusted.
          StoreRefused, StoreUnavailable: as `open`; no answer is ever read as 'no such row'.
        """
        ...

    async def scan(
        self, table: str, tickets: tuple[int, int], unused: Unused | None, epoch_min: int
    ) -> TableRows:
        """Reads the rows whose ids lie in a part of the space of tickets.

        An epoch that is applied meanwhile may be in the answer in part: each row, by itself, is that of the epoch of some
        moment of the call.

        Args:
          table: one of `StoreDescription.scanned`.
          tickets: (first, end), 0 <= first <= end <= 2^32; see `tickets_of` in `sparse/turns.py`.
          unused: leave others out.
          epoch_min: as `pull`.

        Raises: as `pull`.
        """
        ...

    async def info(self) -> StoreInfo:
        """Asks the servers for their version and memory.

        Raises: as `open`.
        """
        ...

    async def close(self) -> None:
        """Closes all connections. Safe to call twice; nothing else may be called afterwards."""
        ...
