"""A row store that behaves as the scripts on Redis do (`streamtrain/store/lua`), behind a network that loses answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from streamtrain.errors import StoreBehind, StoreRefused, StoreUnavailable
from streamtrain.log.record import EpochRecord, TableRows
from tests.simulation.ledger import TABLES, Row, as_rows, as_table
from tests.simulation.scheduler import Scheduler

__all__ = ["Shard", "Shards", "SimulatedStore"]

SHARDS = 2

_ATTEMPTS_MAX = 5
_LATE_MAX = 20


@dataclass
class Shard:
    """One shard on its server: what the scripts keep, and what they answer.

    Attributes:
      rows: by table, the rows by id.
      epoch: up to which the rows are whole; None where nothing can be trusted.
    """

    rows: dict[str, dict[int, Row]] = field(default_factory=lambda: {name: {} for name in TABLES})
    epoch: int | None = None
    loading: int | None = None
    token: int | None = None
    part: int = 0

    def copy(self) -> Shard:
        return replace(self, rows={name: dict(rows) for name, rows in self.rows.items()})

    def begin(self, epoch: int, token: int) -> str:
        """begin.lua."""
        if self.epoch is not None and self.epoch >= epoch:
            return "already"
        if self.loading is not None and self.loading > epoch:
            return "stale"
        self.rows, self.epoch = {name: {} for name in TABLES}, None
        self.loading, self.token, self.part = epoch, token, 0
        return "ok"

    def apply(
        self, mode: str, epoch: int, part: int, last: bool, token: int, table: str, rows: TableRows
    ) -> str:
        """apply.lua: parts of one attempt in order and once."""
        if self.epoch is not None and self.epoch >= epoch:
            return "already"
        if mode == "apply":
            if self.epoch != epoch - 1:
                return "behind"
        elif self.loading != epoch:
            return "lost"
        if self.token == token:
            expected = self.part
        elif mode == "apply" and part == 0:
            expected = 0
        else:
            return "lost"
        if part != expected:
            return "ok" if part < expected else "lost"
        self.rows[table].update(as_rows(rows))
        for gone in rows.tombstones.tolist():
            self.rows[table].pop(gone, None)
        if last:
            self.epoch, self.loading, self.token, self.part = epoch, None, None, 0
        else:
            self.token, self.part = token, part + 1
        return "ok"


class Shards:
    """The servers. They outlive trainers; they may be flushed, or come back from an old snapshot.

    Attributes:
      on_whole: told of a shard that has just reached an epoch.
      refusing: messages are not answered at all.
      loss_share: messages that are lost, or whose answer is.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.shards = [Shard() for _ in range(SHARDS)]
        self.refusing = False
        self.loss_share = 0.0
        self.on_whole: Callable[[int], None] = lambda shard: None
        self._snapshots = [shard.copy() for shard in self.shards]
        self._late: list[tuple[int, Callable[[Shard], str]]] = []
        self.tokens = 0

    def send(self, number: int, script: Callable[[Shard], str], *, may_repeat: bool = True) -> str:
        """Runs a script on a shard. Raises StoreUnavailable, whether it ran or not."""
        random = self.scheduler.random
        self.scheduler.point()
        lost = random.random() < self.loss_share
        if may_repeat and random.random() < 0.1 and len(self._late) < _LATE_MAX:
            self._late.append((number, script))
        if self.refusing or (lost and random.random() < 0.5):
            raise StoreUnavailable(f"shard {number} does not answer")
        answer = self._run(number, script)
        self.scheduler.point()
        if lost:
            raise StoreUnavailable(f"shard {number} did not answer in time")
        return answer

    def _run(self, number: int, script: Callable[[Shard], str]) -> str:
        shard = self.shards[number]
        before = shard.epoch
        answer = script(shard)
        if shard.epoch is not None and shard.epoch != before:
            self.on_whole(number)
        return answer

    def deliver_late(self) -> None:
        """A message that was sent long ago arrives (again)."""
        if self._late:
            number, script = self._late.pop(self.scheduler.random.randrange(len(self._late)))
            self.scheduler.say(f"a late message reaches shard {number}: {self._run(number, script)}")

    def snapshot(self) -> None:
        number = self.scheduler.random.randrange(SHARDS)
        self._snapshots[number] = self.shards[number].copy()

    def restore(self) -> None:
        """A server restarts from its last snapshot."""
        number = self.scheduler.random.randrange(SHARDS)
        self.shards[number] = self._snapshots[number].copy()
        self.scheduler.say(f"shard {number} is back at epoch {self.shards[number].epoch}")

    def flush(self) -> None:
        number = self.scheduler.random.randrange(SHARDS)
        self.shards[number] = Shard()
        self.scheduler.say(f"shard {number} is flushed")


class SimulatedStore:
    """One process's connection: `streamtrain.store.Store`, as `RedisStore` talks to its scripts."""

    def __init__(self, servers: Shards) -> None:
        self._servers = servers

    async def applied_epochs(self) -> dict[int, int | None]:
        held: dict[int, int | None] = {}

        def ask(number: int) -> Callable[[Shard], str]:
            def script(shard: Shard) -> str:
                held[number] = shard.epoch
                return "ok"

            return script

        for number in range(SHARDS):
            self._servers.send(number, ask(number), may_repeat=False)
        return held

    async def apply(self, record: EpochRecord) -> None:
        self._each(lambda number: self._apply(number, record))

    async def load_base(self, base: EpochRecord) -> None:
        self._each(lambda number: self._load(number, base))

    async def pull(self, table: str, ids: np.ndarray, epoch_min: int = 0) -> tuple[np.ndarray, TableRows]:
        found: dict[int, Row] = {}
        for number in sorted({id_ % SHARDS for id_ in ids.tolist()}):
            self._servers.send(
                number, self._reader(number, table, ids.tolist(), epoch_min, found), may_repeat=False
            )
        present = [id_ for id_ in ids.tolist() if id_ in found]
        return np.isin(ids, np.array(present, np.uint64)), as_table(found, present)

    def _reader(
        self, number: int, table: str, ids: Sequence[int], epoch_min: int, found: dict[int, Row]
    ) -> Callable[[Shard], str]:
        def script(shard: Shard) -> str:
            if shard.epoch is None or shard.epoch < epoch_min:
                raise StoreBehind(f"shard {number} is at {shard.epoch}, needed is {epoch_min}")
            rows = shard.rows[table]
            found.update({id_: rows[id_] for id_ in ids if id_ % SHARDS == number and id_ in rows})
            return "ok"

        return script

    def _each(self, call: Callable[[int], None]) -> None:
        """All shards, each to its end; raises the gravest error."""
        errors: list[Exception] = []
        for number in self._servers.scheduler.random.sample(range(SHARDS), SHARDS):
            try:
                call(number)
            except (StoreBehind, StoreRefused, StoreUnavailable) as error:
                errors.append(error)
        order = (StoreRefused, StoreUnavailable, StoreBehind)
        if errors:
            raise min(errors, key=lambda error: order.index(type(error)))

    def _apply(self, number: int, record: EpochRecord) -> None:
        for _ in range(_ATTEMPTS_MAX):
            if self._write(number, record, "apply", self._token()):
                return
        raise StoreUnavailable(f"another process keeps writing to shard {number}")

    def _load(self, number: int, base: EpochRecord) -> None:
        for _ in range(_ATTEMPTS_MAX):
            token = self._token()
            answer = self._servers.send(number, lambda shard, token=token: shard.begin(base.epoch, token))
            if answer == "already":
                return
            if answer == "stale":
                raise StoreRefused(f"shard {number} is being loaded with a newer base than {base.epoch}")
            if self._write(number, base, "load", token):
                return
        raise StoreUnavailable(f"another process keeps writing to shard {number}")

    def _token(self) -> int:
        self._servers.tokens += 1
        return self._servers.tokens

    def _write(self, number: int, record: EpochRecord, mode: str, token: int) -> bool:
        parts = [(name, _share(rows, number)) for name, rows in record.tables.items()]
        for part, (table, rows) in enumerate(parts):
            arguments = (mode, record.epoch, part, part == len(parts) - 1, token, table, rows)
            answer = self._servers.send(number, lambda shard, a=arguments: shard.apply(*a))
            if answer == "already":
                return True
            if answer == "lost":
                return False
            if answer == "behind":
                raise StoreBehind(f"shard {number} is at {self._servers.shards[number].epoch}")
        return True


def _share(rows: TableRows, number: int) -> TableRows:
    mine = rows.ids % np.uint64(SHARDS) == number
    gone = rows.tombstones[rows.tombstones % np.uint64(SHARDS) == number]
    columns = (rows.ids, rows.weights, rows.slots, rows.counts, rows.last_steps)
    ids, weights, slots, counts, steps = (column[mine] for column in columns)
    return TableRows(ids, weights, slots, counts, steps, gone)
