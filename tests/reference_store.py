"""A slow, obvious row store: dicts. And records to fill stores with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from streamtrain.errors import EpochMissing, StoreBehind, StoreUnavailable
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.store import StoreDescription, StoreInfo

DIMS = {"items": (3, 3), "users": (1, 0)}
"""Tables of the tests: by name, weights and optimizer floats of a row."""


def rows_of(
    ids: Sequence[int], dim: int, slots: int, seed: int = 0, tombstones: Sequence[int] = ()
) -> TableRows:
    """Rows with random contents, extremes of the integers among them."""
    random = np.random.default_rng(seed)
    n = len(ids)
    counts = random.integers(0, 2**32, n, np.uint32)
    counts[:1] = 2**32 - 1
    return TableRows(
        np.array(ids, np.uint64),
        random.standard_normal((n, dim), np.float32),
        random.standard_normal((n, slots), np.float32),
        counts,
        random.integers(0, 2**32, n, np.uint32),
        np.array(tombstones, np.uint64),
    )


def record_of(epoch: int, tables: Mapping[str, TableRows]) -> EpochRecord:
    """A record that holds rows and nothing else."""
    return EpochRecord(epoch, "", epoch, epoch + 1, 0, 0, {}, tables, {}, {})


def random_record(epoch: int, rows: int = 50, seed: int = 0, id_max: int = 500) -> EpochRecord:
    """A record of some rows and tombstones of every table, among few ids, so that epochs overlap."""
    random = np.random.default_rng([seed, epoch])
    tables = {}
    for name, (dim, slots) in DIMS.items():
        ids = random.permutation(id_max)[: rows + rows // 3].astype(np.uint64) * np.uint64(
            7_919_000_000_000_001
        )
        tables[name] = rows_of(
            ids[:rows].tolist(), dim, slots, seed * 1000 + epoch, tombstones=ids[rows:].tolist()
        )
    return record_of(epoch, tables)


class DictRows:
    """What all shards together must hold: by table and id, the bytes of each part of the row."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, tuple[bytes, ...]]] = {name: {} for name in DIMS}

    def write(self, record: EpochRecord) -> None:
        for name, rows in record.tables.items():
            for gone in rows.tombstones.tolist():
                self.rows[name].pop(gone, None)
            self.rows[name].update(as_dict(rows))


def as_dict(rows: TableRows) -> dict[int, tuple[bytes, ...]]:
    """By id, the row's parts as bytes, so that equal means the same bits."""
    columns = (rows.weights, rows.slots, rows.counts, rows.last_steps)
    return {
        int(rows.ids[i]): tuple(np.ascontiguousarray(column[i]).tobytes() for column in columns)
        for i in range(len(rows.ids))
    }


class ListLog:
    """Committed epochs in a list; some may be collected, some have a base."""

    def __init__(self) -> None:
        self.records: dict[int, EpochRecord] = {}
        self.base_records: dict[int, EpochRecord] = {}
        self.last: int | None = None

    def append(self, record: EpochRecord) -> None:
        self.records[record.epoch], self.last = record, record.epoch

    def fold(self, epoch: int) -> None:
        """Makes the base of `epoch` from the epochs up to it, and collects them."""
        whole = DictRows()
        for number in sorted(n for n in self.records if n <= epoch):
            whole.write(self.records[number])
        tables = {name: _from_dict(whole.rows[name], *shape) for name, shape in DIMS.items()}
        self.base_records[epoch] = record_of(epoch, tables)
        self.records = {n: record for n, record in self.records.items() if n > epoch}

    def head(self) -> int | None:
        return self.last

    def read(self, epoch: int) -> EpochRecord:
        if epoch not in self.records:
            raise EpochMissing(f"epoch {epoch} is not here")
        return self.records[epoch]

    def bases(self) -> list[int]:
        return sorted(self.base_records)

    def read_base(self, epoch: int) -> EpochRecord:
        return self.base_records[epoch]


def _from_dict(rows: dict[int, tuple[bytes, ...]], dim: int, slots: int) -> TableRows:
    columns = list(zip(*rows.values())) or [(), (), (), ()]
    weights, states, counts, steps = (b"".join(column) for column in columns)
    return TableRows(
        np.array(list(rows), np.uint64),
        np.frombuffer(weights, np.float32).reshape(-1, dim),
        np.frombuffer(states, np.float32).reshape(len(rows), slots),
        np.frombuffer(counts, np.uint32),
        np.frombuffer(steps, np.uint32),
    )


class DictStore:
    """A `Store` of one shard in a dict, whose owner may take it down or make it forget."""

    def __init__(self) -> None:
        self.whole, self.epoch, self.down, self.calls = DictRows(), None, False, list[str]()
        self.epoch: int | None

    async def open(self, description: StoreDescription) -> None:
        self._answer("open")

    async def applied_epochs(self) -> dict[int, int | None]:
        self._answer("applied_epochs")
        return {0: self.epoch}

    async def applied_epoch(self) -> int | None:
        return (await self.applied_epochs())[0]

    async def apply(self, record: EpochRecord) -> None:
        self._answer(f"apply {record.epoch}")
        if self.epoch is None or self.epoch < record.epoch - 1:
            raise StoreBehind(f"at {self.epoch}, not {record.epoch - 1}")
        if self.epoch < record.epoch:
            self.whole.write(record)
            self.epoch = record.epoch

    async def load_base(self, base: EpochRecord) -> None:
        self._answer(f"load_base {base.epoch}")
        if self.epoch is None or self.epoch < base.epoch:
            self.whole, self.epoch = DictRows(), base.epoch
            self.whole.write(base)

    async def pull(
        self, table: str, ids: np.ndarray, epoch_min: int = 0
    ) -> tuple[np.ndarray, TableRows]:  # pragma: no cover - the applier never pulls
        raise NotImplementedError

    async def info(self) -> StoreInfo:
        return StoreInfo("0", 1, 0, 0)

    async def close(self) -> None: ...

    def forget(self) -> None:
        """As FLUSHALL does."""
        self.whole, self.epoch = DictRows(), None

    def _answer(self, call: str) -> None:
        self.calls.append(call)
        if self.down:
            raise StoreUnavailable("the store is down")
