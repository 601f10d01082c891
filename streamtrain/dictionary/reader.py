"""Looks up what ids were, in the files of a reverse dictionary that a daemon may be writing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamtrain.dictionary.segments import VALUES, read_segment, segments
from streamtrain.errors import LogError

__all__ = ["Dictionary"]

_TRIES_MAX = 5


class Dictionary:
    """The values of one or more slots, in memory: 20 bytes an id, and the values.

    Attributes:
      slots: the slots of which there are values.
    """

    def __init__(self, log_path: Path, slots: Iterable[str]) -> None:
        """Reads the dictionaries of these slots, where there are any.

        Raises:
          LogError: a file cannot be read; it may be removed, since the model does not need it.
        """
        tables: list[pa.Table] = []
        owners: list[NDArray[np.int32]] = []
        self.slots: list[str] = []
        for name in slots:
            for number, table in enumerate(_read(log_path / VALUES / name)):
                if number == 0:
                    self.slots.append(name)
                value = table.column("value").cast(pa.large_string())
                tables.append(pa.table({"id": table.column("id"), "value": value}))
                owners.append(np.full(table.num_rows, len(self.slots) - 1, np.int32))
        whole = (
            pa.concat_tables(tables)
            if tables
            else pa.table({"id": pa.array([], pa.uint64()), "value": pa.array([], pa.large_string())})
        )
        self._ids, first = np.unique(whole.column("id").to_numpy(), return_index=True)
        self._values = whole.column("value").cast(pa.large_string()).take(pa.array(first)).combine_chunks()
        self._owners = np.concatenate(owners)[first] if owners else np.empty(0, np.int32)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> NDArray[np.uint64]:
        """The ids of which the value is known, ascending."""
        return self._ids

    def find(self, ids: NDArray[np.uint64]) -> tuple[pa.Array, pa.Array]:
        """Of each id, the slot and the value as text, as Arrow large_string arrays; null where nothing is known."""
        if not len(self):
            return pa.nulls(len(ids), pa.large_string()), pa.nulls(len(ids), pa.large_string())
        places = np.minimum(np.searchsorted(self._ids, ids), len(self) - 1)
        unknown = self._ids[places] != ids
        chosen = pa.array(places, mask=unknown)
        owners = pa.array(self._owners[places], mask=unknown)
        return pa.array(self.slots, pa.large_string()).take(owners), self._values.take(chosen)


def _read(directory: Path) -> list[pa.Table]:
    """All files of a slot. Where the daemon unites some of them meanwhile, they are listed again."""
    for _ in range(_TRIES_MAX):
        try:
            return [read_segment(path) for path in segments(directory)]
        except FileNotFoundError:
            continue
        except OSError as error:
            raise LogError(f"cannot read the reverse dictionary: {error}") from error
    raise LogError(f"cannot read the reverse dictionary in {directory}: its files change too fast; try again")
