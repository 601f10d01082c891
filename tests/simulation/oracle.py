"""What must hold, checked at every durable epoch, at every move of a view, and at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from streamtrain.log.reader import LogReader
from streamtrain.log.record import EpochRecord
from streamtrain.log.recovery import recover
from streamtrain.log.verify import verify
from streamtrain.serving.files import read_export
from streamtrain.serving.manifest import Manifest
from streamtrain.serving.model import ServedModel
from streamtrain.sources import Span
from tests.simulation.disk import Disk
from tests.simulation.ledger import TABLES, Ledger, Row, as_rows, poisoned
from tests.simulation.store import SHARDS, Shards
from tests.simulation.stream import Stream

__all__ = ["Committed", "Oracle"]


@dataclass(frozen=True, slots=True)
class Committed:
    """One durable epoch, and the state that an undisturbed run over the recorded spans has there."""

    digest: str
    tables: dict[str, dict[int, Row]]
    dense: int


class Oracle:
    """Learns every durable epoch again from the stream, and compares.

    Attributes:
      history: by number, the durable epochs.
      shown: the epoch that the follower served last.
    """

    def __init__(self, stream: Stream, log: LogReader, disk: Disk, store: Shards) -> None:
        self._stream, self._log, self._disk, self._store = stream, log, disk, store
        self._twin = Ledger()
        self._step = 0
        self._learned: Counter[int] = Counter()
        self._quarantined: Counter[int] = Counter()
        self._positions: dict[str, tuple[int, int]] = {}
        self.history: list[Committed] = []
        self.shown = -1

    @property
    def head(self) -> int:
        return len(self.history) - 1

    @property
    def samples(self) -> int:
        return sum(self._learned.values())

    # Epochs

    def synced(self, directory: Path) -> None:
        """Takes note of epochs whose names have become durable."""
        if directory.name == "epochs":
            durable = self._disk.durable_names(directory)
            while (path := self._log.epoch_path(self.head + 1)).name in durable:
                record = self._log.read(self.head + 1)
                self._commit(record, self._log.digest(record.epoch))
                self._disk.scheduler.say(
                    f"{path.stem.lstrip('0') or '0'} is durable: {record.samples} samples by {record.writer or '-'}"
                )

    def _commit(self, record: EpochRecord, digest: str) -> None:
        epoch, before = record.epoch, self.history[-1].digest if self.history else ""
        assert record.previous == before, f"epoch {epoch} does not follow the epoch before it"
        if epoch == 0:
            self._positions = _places(record)
        else:
            self._relearn(record)
        cut = self._twin.cut()
        for name in TABLES:
            ours, theirs = cut[name], record.tables[name]
            assert as_rows(theirs) == as_rows(ours), f"epoch {epoch}: {name} is not what its spans teach"
            same = sorted(theirs.tombstones.tolist()) == sorted(ours.tombstones.tolist())
            assert same, f"epoch {epoch}: other rows of {name} are removed"
        assert int(record.dense["params/hash"]) == self._twin.dense, f"epoch {epoch}: the dense state differs"
        assert _places(record) == self._positions, (
            f"epoch {epoch}: positions {_places(record)}, its spans end at {self._positions}"
        )
        tables = {name: dict(rows) for name, rows in self._twin.tables.items()}
        self.history.append(Committed(digest, tables, self._twin.dense))

    def _relearn(self, record: EpochRecord) -> None:
        """An undisturbed run over the spans of an epoch."""
        assert record.step_first == self._step, (
            f"epoch {record.epoch} begins at step {record.step_first}, not {self._step}"
        )
        bad = samples = refused = 0
        steps: list[int] = []
        for step, spans in groupby(record.spans, key=lambda span: span[0]):
            batch: list[int] = []
            for _, name, begin, end, count in spans:
                self._advance(name, begin, end)
                leaves = list(self._stream.leaves(Span.of(name, begin, end, count)))
                good = [leaf for leaf in leaves if leaf is not None]
                assert len(good) == count, f"epoch {record.epoch}: a span of {len(good)} samples says {count}"
                bad += len(leaves) - len(good)
                batch += good
            if batch:
                assert step == self._step, f"epoch {record.epoch}: step {step} follows {self._step - 1}"
                self._step += 1
                if poisoned(batch):
                    self._quarantined.update(batch)
                    steps.append(step)
                    refused += len(batch)
                else:
                    self._twin.learn(batch, step)
                    self._learned.update(batch)
                    samples += len(batch)
        assert (record.samples, record.bad_samples) == (samples, bad), f"epoch {record.epoch} miscounts"
        told = (record.spans.quarantined.tolist(), record.quarantined_minibatches, record.quarantined_samples)
        assert told == (steps, len(steps), refused), f"epoch {record.epoch} miscounts what is quarantined"
        assert record.step_next == self._step, f"epoch {record.epoch} miscounts steps"
        assert record.samples_total == self.samples, f"epoch {record.epoch} miscounts all samples"

    def _advance(self, name: str, begin: tuple[int, int], end: tuple[int, int]) -> None:
        known = self._positions.get(name)
        if known is None and self._stream.sequential:
            self._positions.clear()
        at = (self._stream.begins[name], 0) if known is None else known
        assert begin == at, f"{name}: records from {begin} are learned where {at} comes next"
        self._positions[name] = end

    # Views

    def announced(self, epoch: int, digest: str) -> None:
        """A writer says that an epoch is durable."""
        assert epoch <= self.head, f"epoch {epoch} was announced before it was durable"
        assert self.history[epoch].digest == digest, (
            f"epoch {epoch} was announced, but another one is durable"
        )

    def restored(self, epoch: int, model: Ledger, *, rows: bool) -> None:
        """A trainer begins from an epoch."""
        assert epoch <= self.head, f"training goes on from epoch {epoch}, which is not durable"
        committed = self.history[epoch]
        assert model.dense == committed.dense, f"recovery of epoch {epoch} gives another dense state"
        assert not rows or model.tables == committed.tables, f"recovery of epoch {epoch} gives other rows"

    def shard_whole(self, number: int) -> None:
        """A shard of the store has reached an epoch."""
        shard = self._store.shards[number]
        assert shard.epoch is not None
        assert shard.epoch <= self.head, f"shard {number} has epoch {shard.epoch} before it is durable"
        for name, rows in self.history[shard.epoch].tables.items():
            mine = {id_: row for id_, row in rows.items() if id_ % SHARDS == number}
            assert shard.rows[name] == mine, f"shard {number}: {name} is not that of epoch {shard.epoch}"

    def served(self, epoch: int, digest: str, weights: dict[str, dict[int, float]], dense: int) -> None:
        """What a follower serves."""
        assert epoch <= self.head and self.history[epoch].digest == digest, (
            f"epoch {epoch} ({digest[:12]}) is served, which was never committed"
        )
        self.shown, committed = epoch, self.history[epoch]
        for name, rows in committed.tables.items():
            assert weights[name] == {id_: row[0] for id_, row in rows.items()}, (
                f"epoch {epoch}: {name} is served wrong"
            )
        assert dense == committed.dense, f"epoch {epoch}: the dense state is served wrong"

    # The disk

    def check_after_power_cut(self, exports: Path) -> None:
        """What was durable is there, and what the export's manifest names is whole."""
        there = [
            int(name[:20])
            for part in ("epochs", "bases")
            for name in self._disk.durable_names(self._log.path / part)
        ]
        assert self.head <= max(there, default=-1), f"epoch {self.head} was durable, and is gone"
        self.check_export(exports)

    def check_named(self, exports: Path) -> None:
        """Every file that the manifest names is there."""
        if (exports / "manifest.json").exists():
            for name in Manifest.read(exports / "manifest.json").names:
                assert (exports / name).exists(), f"the manifest names {name}, which is not there"

    def check_export(self, exports: Path) -> int:
        """Every file that the manifest names is whole; returns its head, -1 where there is none."""
        if not (exports / "manifest.json").exists():
            return -1
        manifest, model = Manifest.read(exports / "manifest.json"), ServedModel.read(exports / "model.json")
        for entry in (*manifest.bases, *manifest.deltas):
            read_export(exports, entry, model)
        return manifest.head.epoch

    def check_end(self, exports: Path) -> None:
        """Everything is learned once, and every view has it."""
        expected = Counter(range(1, self._stream.samples + 1))
        seen = self._learned + self._quarantined
        lost, doubled = expected - seen, seen - expected
        assert not lost, f"lost: {sorted(lost)}"
        assert not doubled, f"learned twice: {sorted(doubled)}"
        report = verify(self._log.path)
        assert report.ok, f"verify: {report.problems[0]}"
        assert report.head == self.head, f"the log ends at {report.head}, durable was {self.head}"
        last = Ledger()
        for record in recover(self._log):
            last.load(record)
        self.restored(self.head, last, rows=True)
        assert set(last.tables["ledger"]) == set(self._learned), "the ledger misses samples"
        assert all(row[1] == 1 for row in last.tables["ledger"].values()), "the ledger counts a sample twice"
        assert self.check_export(exports) in (-1, self.head), "the export stops before the log's head"


def _places(record: EpochRecord) -> dict[str, tuple[int, int]]:
    """By partition, offset and leaves learned there."""
    return {name: (offset, record.leaves.get(name, 0)) for name, offset in record.positions.items()}
