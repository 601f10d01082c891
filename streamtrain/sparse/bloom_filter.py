"""Admission by a counting Bloom filter: its memory, its schedule, and what an epoch commits of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import ConfigError
from streamtrain.log.record import FilterRows
from streamtrain.sparse import bloom
from streamtrain.sparse.init import admission_key
from streamtrain.sparse.lifecycle_settings import CountingBloomAdmission
from streamtrain.sparse.memory import as_input, reserve
from streamtrain.sparse.turns import share_of

__all__ = ["BloomAdmission"]


class BloomAdmission:
    """See `Admission`; the filter is described in `streamtrain.sparse.bloom`."""

    def __init__(self, settings: CountingBloomAdmission, seed: int, table: str) -> None:
        """Args: settings: of the rule; seed: the model's; table: its name. Raises: ConfigError."""
        self._name = f"tables.{table}.admission"
        size = bloom.bloom_size(settings.expected_ids, settings.error)
        self._blocks, self._hashes, self._threshold = size.blocks, size.hashes, settings.threshold
        self._halve_every = settings.halve_every_steps
        self._key = np.uint64(admission_key(seed, table))
        self._counters: NDArray[np.uint8] = reserve((size.blocks, bloom.COUNTERS), np.uint8, self._name)
        self._changed: NDArray[np.bool_] = reserve((size.blocks,), np.bool_, self._name)
        self._fill, self._fill_before = np.zeros(2, np.int64), np.zeros(2, np.int64)
        self._touched, self._count = np.empty(0, np.int64), 0
        self._before = np.empty((0, bloom.COUNTERS), np.uint8)

    @property
    def memory_bytes(self) -> int:
        return (bloom.COUNTERS + 1) * self._blocks

    def admit(self, ids: NDArray[np.uint64], occurrences: NDArray[np.uint32], step: int) -> NDArray[np.bool_]:
        if len(ids) > len(self._touched):
            capacity = 1 << (len(ids) - 1).bit_length()
            self._touched = np.empty(capacity, np.int64)
            self._before = np.empty((capacity, bloom.COUNTERS), np.uint8)
        admitted = np.empty(len(ids), np.bool_)
        self._fill_before[:] = self._fill
        self._count = bloom.admit(
            ids,
            occurrences,
            self._key,
            self._hashes,
            self._threshold,
            self._counters,
            self._fill,
            admitted,
            self._touched,
            self._before,
        )
        return admitted

    def keep(self) -> None:
        self._changed[self._touched[: self._count]] = True

    def undo(self) -> None:
        bloom.undo(self._counters, self._touched[: self._count], self._before)
        self._fill[:] = self._fill_before

    def end(self, step: int) -> None:
        if self._halve_every is not None:
            first, last = share_of(self._blocks, step, self._halve_every)
            bloom.halve(self._counters, first, last, self._fill, self._changed)

    def cut(self) -> FilterRows:
        blocks = np.flatnonzero(self._changed)
        self._changed[blocks] = False
        values = self._counters[blocks]
        used = values.any(axis=1)
        return FilterRows(blocks[used].astype(np.uint64), values[used], blocks[~used].astype(np.uint64))

    def load(self, values: FilterRows) -> None:
        blocks = np.concatenate([values.ids, values.tombstones])
        if values.values.shape[1] != bloom.COUNTERS or (len(blocks) and int(blocks.max()) >= self._blocks):
            raise ConfigError(
                f"{self._name}: the log holds a filter of another rule or size than the settings make; set "
                "kind, expected_ids and error back"
            )
        for array, held in (
            (values.ids, as_input(values.values, np.uint8)),
            (values.tombstones, np.uint8(0)),
        ):
            places = array.astype(np.int64)
            self._fill -= _fill_of(self._counters[places])
            self._counters[places] = held
            self._fill += _fill_of(self._counters[places])

    def state(self) -> Mapping[str, np.ndarray]:
        return {}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        assert not state

    def gauges(self) -> Mapping[str, float]:
        used, saturated = self._fill.tolist()
        total = self._blocks * bloom.COUNTERS
        return {"fill": used / total, "saturated": saturated / total}


def _fill_of(counters: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.array([np.count_nonzero(counters), np.count_nonzero(counters == bloom.MAX)], np.int64)
