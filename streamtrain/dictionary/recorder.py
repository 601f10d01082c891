"""Writes down which value each feature id came from, as samples are decoded. Never in the way of learning."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamtrain.dictionary.segments import VALUES, read_segment, remove_segments, segments, write_segment
from streamtrain.dictionary.settings import ReverseDictionarySettings
from streamtrain.sparse.index import IdSet

__all__ = ["ValueRecorder"]

logger = logging.getLogger(__name__)

_PENDING_MAX = 16_384
_PENDING_S = 10.0
_SEGMENTS_MAX = 64


@dataclass(slots=True)
class _Slot:
    directory: Path
    settings: ReverseDictionarySettings
    known: IdSet
    pending: list[pa.Table] = field(default_factory=list)
    waiting: int = 0
    written_s: float = 0.0
    stopped: bool = False


class ValueRecorder:
    """Keeps the values of new ids, up to a bound, in files beside the log.

    A batch costs a look-up for each of its values, in the thread that decodes; a new value is written once, with up to
    16,384 others or after ten seconds. What a crash loses is written when the value comes again. Where the disk fails, it
    says so once and records no more until the next start: learning goes on.

    Args:
      log_path: the log's directory.
      slots: by slot, its settings.
      clock: seconds, monotonic: when to write, nothing else.
    """

    def __init__(
        self,
        log_path: Path,
        slots: Mapping[str, ReverseDictionarySettings],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._guard = clock, threading.Lock()
        self._slots = {name: self._open(log_path / VALUES / name, one) for name, one in slots.items()}

    def _open(self, directory: Path, settings: ReverseDictionarySettings) -> _Slot:
        slot = _Slot(directory, settings, IdSet(f"reverse_dictionary.{directory.name}", settings.values_max))
        slot.written_s = self._clock()
        with _stopping_on_errors(slot):
            for path in segments(directory):
                ids = read_segment(path, ["id"]).column("id").to_numpy()
                self._learn(slot, ids)
        return slot

    def see(self, name: str, values: NDArray[Any] | pa.Array, ids: NDArray[np.uint64]) -> None:
        """Takes what a slot's column held.

        Args:
          name: the slot, or the one that it shares its ids with.
          values: `[N]` int64, or an Arrow string array.
          ids: `[N]` uint64, their ids.
        """
        slot = self._slots.get(name)
        if slot is None or slot.stopped:
            return
        with self._guard, _stopping_on_errors(slot):
            new = np.flatnonzero(~slot.known.contains(ids))
            if len(new):
                self._add(slot, pa.array(values), ids, new)
            late = self._clock() - slot.written_s >= _PENDING_S
            if slot.waiting >= _PENDING_MAX or (slot.waiting and late):
                self._write(slot)

    def close(self) -> None:
        """Writes what waits. Never raises for the disk."""
        with self._guard:
            for slot in self._slots.values():
                with _stopping_on_errors(slot):
                    if slot.waiting and not slot.stopped:
                        self._write(slot)

    def _add(self, slot: _Slot, values: pa.Array, ids: NDArray[np.uint64], new: NDArray[np.int64]) -> None:
        if pa.types.is_large_string(values.type) or pa.types.is_string(values.type):
            sizes = pc.binary_length(values.take(pa.array(new))).to_numpy(zero_copy_only=False)
            new = new[sizes <= slot.settings.value_bytes_max]
        new = new[self._learn(slot, ids[new])]
        if len(new):
            taken = values.take(pa.array(new))
            if pa.types.is_large_string(taken.type):
                taken = taken.cast(pa.string())
            slot.pending.append(pa.table({"id": ids[new], "value": taken}))
            slot.waiting += len(new)

    def _learn(self, slot: _Slot, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Adds ids as long as there is room; which of them (`[N]` bool) are new."""
        fresh = np.zeros(len(ids), bool)
        room = slot.settings.values_max - len(slot.known)
        first = np.unique(ids, return_index=True)[1]
        chosen = np.sort(first[~slot.known.contains(ids[first])])[:room]
        fresh[chosen] = slot.known.add_missing(ids[chosen])
        if room and len(slot.known) == slot.settings.values_max:
            logger.warning(
                "the reverse dictionary of slot %s holds values_max = %d values; values that come from now on are not "
                "recorded",
                slot.directory.name,
                slot.settings.values_max,
            )
        return fresh

    def _write(self, slot: _Slot) -> None:
        write_segment(slot.directory, pa.concat_tables(slot.pending))
        slot.pending, slot.waiting, slot.written_s = [], 0, self._clock()
        if len(there := segments(slot.directory)) > _SEGMENTS_MAX:
            write_segment(slot.directory, pa.concat_tables([read_segment(path) for path in there]))
            remove_segments(there)


@contextmanager
def _stopping_on_errors(slot: _Slot) -> Iterator[None]:
    """Ends the recording of a slot where the disk fails, in words."""
    try:
        yield
    except OSError as error:
        slot.stopped, slot.pending, slot.waiting = True, [], 0
        logger.warning(
            "the reverse dictionary of slot %s is not recorded until the next start: %s; learning goes on",
            slot.directory.name,
            error,
        )
