"""The trainer thread's loop, with a learner that only counts: what is learned, cut, left out and raised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from streamtrain.errors import Fenced, TableFull, TooManyQuarantined
from streamtrain.log.record import EpochRecord, TableRows
from streamtrain.metrics import Metrics
from streamtrain.samples.minibatch import Minibatch, Minibatcher
from streamtrain.sources import DataLoss, Gap
from streamtrain.store.progress import Progress
from streamtrain.store.sweeps import Share
from streamtrain.training import trainer as module
from streamtrain.training.epochs import EpochBuilder
from streamtrain.training.handoff import End, Item
from streamtrain.training.prequential import Prequential
from streamtrain.training.settings import TrainingSettings
from streamtrain.training.trainer import Trainer
from tests.fakes import decoded

GENESIS = EpochRecord(0, "", 0, 0, 0, 0, {"p": 0}, {}, {}, {})


class CountingLearner:
    """A learner without a model."""

    def __init__(self, fails_at: float = math.inf, poisoned: Sequence[int] = ()) -> None:
        self._poisoned = poisoned
        self.epochs = EpochBuilder(GENESIS, sequential=False)
        self.prequential = Prequential(["click"], 1000)
        self.dense = SimpleNamespace(compilations=0)
        self.sizes: list[int] = []
        self.pulled: list[Mapping[str, TableRows]] = []
        self._fails_at = fails_at

    def learn(self, minibatch: Minibatch, ahead: object = None) -> bool:
        if len(self.sizes) == self._fails_at:
            raise TableFull("main is full")
        quarantined = len(self.sizes) in self._poisoned
        self.sizes.append(minibatch.batch.size)
        self.epochs.add(minibatch, quarantined=quarantined)
        return not quarantined

    def evict(self, ids: Mapping[str, np.ndarray]) -> None:
        if ids:
            self.pulled.append(ids)

    def insert_pulled(self, rows: Mapping[str, TableRows]) -> None:
        self.pulled.append(rows)

    def cut(self) -> EpochRecord:
        return self.epochs.cut({}, {}, {}, {})


class StillCommitter:
    """A committer without a log. `busy` takes what `turns` says, then False; an exception there is raised."""

    def __init__(self, turns: Sequence[bool | BaseException] = (), full: bool = False) -> None:
        self.records: list[EpochRecord] = []
        self.drained = 0
        self.full = full
        self._turns = list(turns)

    @property
    def busy(self) -> bool:
        turn = self._turns.pop(0) if self._turns else False
        if isinstance(turn, BaseException):
            raise turn
        return turn

    def submit(self, record: EpochRecord) -> None:
        self.records.append(record)

    def drain(self) -> None:
        self.drained += 1


class Feeding:
    """A handoff that is scripted: items, None for nothing in time, callables that are called; then the end."""

    def __init__(self, *script: Any) -> None:
        self._script = list(script)
        self.timeouts: list[float] = []

    def get(self, timeout_s: float) -> Item | End | None:
        self.timeouts.append(timeout_s)
        step = self._script.pop(0) if self._script else End()
        return step() if callable(step) else step


def trainer(
    learner: CountingLearner,
    feeding: Feeding,
    committer: StillCommitter,
    *,
    interval_s: float = 3600,
    progress: Progress | None = None,
    sweeps: Any = None,
    **settings: Any,
) -> Trainer:
    chosen = TrainingSettings(**({"batch_size": 4, "linger_ms": 60_000} | settings))
    any_: Any = (learner, feeding, committer)
    return Trainer(*any_, chosen, interval_s, Metrics(), progress, sweeps)


def item(first: int, count: int) -> Item:
    return Item(decoded(first, count))


def test_the_end_learns_what_waits_and_commits_it() -> None:
    learner, committer = CountingLearner(), StillCommitter()
    trainer(learner, Feeding(item(0, 6), item(6, 4)), committer).run()
    assert learner.sizes == [4, 4, 2]
    assert [(r.epoch, r.samples, dict(r.positions)) for r in committer.records] == [(1, 10, {"p": 10})]
    assert committer.drained == 1


def test_nothing_read_means_nothing_committed() -> None:
    committer = StillCommitter()
    trainer(CountingLearner(), Feeding(None, None), committer).run()
    assert committer.records == [] and committer.drained == 1


def test_stop_commits_what_was_learned_and_leaves_the_rest_unread() -> None:
    learner, committer = CountingLearner(), StillCommitter()

    def stop() -> None:
        made.stop()

    made = trainer(learner, Feeding(item(0, 6), stop), committer)
    made.run()
    assert learner.sizes == [4]
    assert dict(committer.records[0].positions) == {"p": 4}


def test_an_epoch_is_cut_between_the_steps_of_one_chunk_when_it_is_due() -> None:
    learner, committer = CountingLearner(), StillCommitter()
    trainer(learner, Feeding(item(0, 12)), committer, interval_s=0).run()
    assert [(r.step_first, r.step_next, r.samples) for r in committer.records] == [
        (0, 1, 4),
        (1, 2, 4),
        (2, 3, 4),
    ]


def test_training_goes_on_while_the_epoch_before_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_INTERVALS_UNCOMMITTED_MAX", math.inf)
    learner, committer = CountingLearner(), StillCommitter([True] * 100)
    trainer(learner, Feeding(item(0, 12)), committer, interval_s=1e-9).run()
    assert learner.sizes == [4, 4, 4] and [r.samples for r in committer.records] == [12]


def test_training_pauses_when_the_log_has_no_room() -> None:
    learner, committer = CountingLearner(), StillCommitter([True] * 20, full=True)
    trainer(learner, Feeding(item(0, 12)), committer, interval_s=0).run()
    assert [r.samples for r in committer.records] == [4, 4, 4]


def test_a_cut_that_waits_for_the_writer_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout of 0 would poll the handoff as fast as it can, and take the interpreter from the writer."""
    monkeypatch.setattr(module, "_INTERVALS_UNCOMMITTED_MAX", math.inf)
    feeding = Feeding(item(0, 4), None, None, None)
    trainer(CountingLearner(), feeding, StillCommitter([True] * 100), interval_s=1e-9).run()
    # Once, behind the minibatch, it looks whether there is more to prepare.
    assert [timeout for timeout in feeding.timeouts if timeout <= 0] == [0.0]


class EventLearner(CountingLearner):
    """One that tells the order of what was done to it, and whether a minibatch was shown ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def learn(self, minibatch: Minibatch, ahead: Any = None) -> bool:
        coming = ahead()
        self.events.append(
            f"learn {minibatch.spans[0].first} {'' if coming is None else coming.size}".strip()
        )
        return super().learn(minibatch)

    def evict(self, ids: Mapping[str, np.ndarray]) -> None:
        if ids:
            self.events.append("evict")

    def insert_pulled(self, rows: Mapping[str, TableRows]) -> None:
        if rows:
            self.events.append("insert")

    def skip(self, loss: DataLoss) -> None:
        self.events.append("skip")
        self.epochs.skip(loss.gaps)


def test_the_minibatch_to_come_is_shown_where_it_is_there_already() -> None:
    learner, committer = EventLearner(), StillCommitter()
    trainer(
        learner, Feeding(item(0, 4), item(4, 2), item(6, 2), None, item(8, 4), item(12, 1)), committer
    ).run()
    assert learner.events == ["learn 0 4", "learn 4", "learn 8", "learn 12"]
    assert [(r.samples, dict(r.positions)) for r in committer.records] == [(13, {"p": 13})]


def test_what_comes_with_rows_and_what_is_lost_waits_until_all_before_it_is_learned() -> None:
    rows = TableRows.empty(2, 2)
    learner, committer = EventLearner(), StillCommitter()
    loss = DataLoss((Gap("p", 12, 20, "retention"),), "files", 0)
    pulled = Item(decoded(4, 4), {"main": rows}, {"main": np.ones(1, np.uint64)})
    assert not pulled.bare and Item(decoded(4, 4), {"main": rows}, {"main": np.ones(0, np.uint64)}).bare
    trainer(learner, Feeding(item(0, 4), pulled, item(8, 4), loss, item(20, 4)), committer).run()
    assert learner.events == ["learn 0", "evict", "insert", "learn 4 4", "learn 8", "skip", "learn 20"]
    assert sum(record.samples for record in committer.records) == 16


def test_a_writer_that_failed_is_noticed_though_no_sample_comes() -> None:
    """An idle stream must not hide that the last epoch never became durable."""
    feeding = Feeding(*[None] * 10)
    committer = StillCommitter([False, False, Fenced("another writer")])
    with pytest.raises(Fenced):
        trainer(CountingLearner(), feeding, committer).run()
    assert len(feeding.timeouts) < 10


def test_an_epoch_of_very_many_spans_is_cut_before_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SPANS_MAX", 2)
    committer = StillCommitter()
    trainer(CountingLearner(), Feeding(item(0, 16)), committer).run()
    assert [len(r.spans.spans) for r in committer.records] == [2, 2]


def test_what_stops_a_step_is_raised_and_its_epoch_is_not_committed() -> None:
    committer = StillCommitter()
    with pytest.raises(TableFull):
        trainer(CountingLearner(fails_at=1), Feeding(item(0, 12)), committer).run()
    assert committer.records == []


def test_a_minibatch_that_is_not_full_waits_no_longer_than_its_linger() -> None:
    learner, feeding = CountingLearner(), Feeding(item(0, 3), None, item(3, 5))
    trainer(learner, feeding, StillCommitter(), linger_ms=0).run()
    assert learner.sizes == [3, 4, 1]


def test_bad_records_alone_advance_the_positions_without_a_step() -> None:
    learner, committer = CountingLearner(), StillCommitter()
    bad = Item(decoded(0, [b"{", None], gap=3))
    trainer(learner, Feeding(bad, item(5, 4)), committer, linger_ms=0).run()
    [record] = committer.records
    assert (record.bad_samples, record.samples, record.step_next, dict(record.positions)) == (
        2,
        4,
        1,
        {"p": 9},
    )


def test_pulled_rows_reach_the_learner_before_the_samples_that_need_them() -> None:
    rows, gone = {"main": TableRows.empty(2, 2)}, {"main": np.arange(3, dtype=np.uint64)}
    learner = CountingLearner()
    trainer(learner, Feeding(Item(decoded(0, 4), rows, gone)), StillCommitter()).run()
    # Room is made first.
    assert learner.pulled == [gone, rows] and learner.sizes == [4]


def test_a_cut_tells_which_chunks_it_holds_whole() -> None:
    told: list[tuple[int, int, int]] = []

    class Told(Progress):
        def cut(self, epoch: int, batch: int, step: int) -> None:
            told.append((epoch, batch, step))

    # Minibatches of 4: the third and fourth chunks wait in part, an empty one in between is no chunk that waits.
    chunks = [item(0, 4), item(4, 2), item(6, 3), Item(decoded(9, [])), item(9, 1), item(10, 5)]
    trainer(CountingLearner(), Feeding(*chunks), StillCommitter(), interval_s=0, progress=Told()).run()
    assert told == [(1, 1, 1), (2, 2, 2), (3, 5, 3), (4, 6, 4)]


class LateShares:
    """Brings the share of each step when it was asked for twice more, unless it is a step that `never` comes."""

    tables: Mapping[str, object] = {}

    def __init__(self, never: int = -1, then: Any = None) -> None:
        self.asked: list[int] = []
        self._never, self._then = never, then

    def take(self, step: int, timeout_s: float) -> Share | None:
        self.asked.append(step)
        if step == self._never:
            self._then()
        elif self.asked.count(step) == 3:
            return Share(step, {}, whole=step)
        return None


class OfferedLearner(CountingLearner):
    """Learns no step but the one for which a share was offered."""

    def __init__(self) -> None:
        super().__init__()
        self.offered: list[tuple[int, int]] = []

    def without_expired(
        self, rows: Mapping[str, TableRows], whole: int, tables: object
    ) -> Mapping[str, TableRows]:
        return rows

    def offer(self, share: Share, oldest: int) -> None:
        self.offered.append((share.step, oldest))

    def learn(self, minibatch: Minibatch, ahead: object = None) -> bool:
        assert self.offered[-1][0] == self.epochs.step
        return super().learn(minibatch)


def test_no_step_is_taken_before_the_rows_came_that_expiry_looks_at_and_what_is_learned_is_cut_meanwhile() -> (
    None
):
    learner, committer, shares = OfferedLearner(), StillCommitter(), LateShares()
    feeding = Feeding(*(Item(decoded(4 * n, 4), whole=n // 2) for n in range(3)), item(12, 2))
    trainer(learner, feeding, committer, interval_s=0, sweeps=shares).run()
    assert learner.sizes == [4, 4, 4, 2] and [record.samples for record in committer.records] == learner.sizes
    assert shares.asked == sorted([0, 1, 2, 3] * 3)
    assert learner.offered == [(0, 0), (1, 0), (2, 0), (3, 1)]


def test_a_trainer_that_waits_for_rows_stops_where_it_is_told_to() -> None:
    learner, committer = OfferedLearner(), StillCommitter()
    running: list[Trainer] = []
    shares = LateShares(never=1, then=lambda: running[0].stop())
    running.append(trainer(learner, Feeding(item(0, 4), item(4, 4)), committer, sweeps=shares))
    running[0].run()
    assert learner.sizes == [4] and [record.samples for record in committer.records] == [4]


def test_an_epoch_that_somebody_waits_for_is_cut_before_it_is_due() -> None:
    learner, committer, progress = CountingLearner(), StillCommitter(), Progress()

    def wish() -> None:
        progress.urgent = True

    feeding = Feeding(item(0, 4), item(4, 4), wish, item(8, 4), item(12, 4))
    trainer(learner, feeding, committer, progress=progress).run()
    assert [record.samples for record in committer.records] == [8, 8] and not progress.urgent


@pytest.mark.parametrize(("urgent", "whole", "told"), [(True, 1, 1), (False, 1, 0), (True, 0, 0)])
def test_a_minibatch_that_memory_cannot_hold_is_told_once(
    caplog: pytest.LogCaptureFixture, urgent: bool, whole: int, told: int
) -> None:
    """Not one that is short because nothing came, nor where rows still wait for the store."""
    progress = Progress()

    def stuck() -> None:
        progress.urgent, progress.batch = urgent, whole

    # The first call has the epoch cut; what waits for room then finds that it was not enough.
    feeding = Feeding(item(0, 4), stuck, stuck, item(4, 2), stuck, stuck, item(6, 3))
    learner = CountingLearner()
    trainer(learner, feeding, StillCommitter(), progress=progress, linger_ms=0).run()
    assert learner.sizes == [4, 2, 3]
    said = [r.message for r in caplog.records if "memory_bytes_max holds no rows for more" in r.message]
    assert len(said) == told and all(
        "a minibatch has 2 samples, not training.batch_size = 4" in s for s in said
    )


def test_spans_of_an_epoch_are_what_was_learned_in_order() -> None:
    committer = StillCommitter()
    feeding = Feeding(Item(decoded(0, 3)), Item(decoded(10, 3, partition="q")))
    trainer(CountingLearner(), feeding, committer).run()
    [record] = committer.records
    assert record.spans.partitions == ("p", "q")
    np.testing.assert_array_equal(record.spans.spans, [[0, 0, 0, 3, 3], [0, 1, 10, 11, 1], [1, 1, 11, 13, 2]])


def test_a_quarantined_minibatch_is_recorded_counted_and_said_but_not_learned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learner, committer = CountingLearner(poisoned=[1]), StillCommitter()
    made = trainer(learner, Feeding(item(0, 10)), committer)
    made.run()
    (record,) = committer.records
    assert (record.samples, record.samples_total, record.step_next) == (6, 6, 3)
    assert (record.quarantined_minibatches, record.quarantined_samples) == (1, 4)
    assert record.spans.quarantined.tolist() == [1]
    assert record.spans.spans[:, [0, 2, 3, 4]].tolist() == [[0, 0, 4, 4], [1, 4, 8, 4], [2, 8, 10, 2]]
    assert record.positions == {"p": 10}
    assert (
        "quarantined 4 samples, which would have left NaN or an infinity in the model: p offsets 4 to 7"
        in (caplog.text)
    )
    sample = made._metrics.registry.get_sample_value
    assert sample("streamtrain_samples_total") == 6 and sample("streamtrain_steps_total") == 2
    assert sample("streamtrain_quarantined_minibatches_total") == 1
    assert sample("streamtrain_quarantined_samples_total") == 4


def test_quarantined_samples_move_no_time() -> None:
    epochs = EpochBuilder(GENESIS, sequential=False)
    minibatch = Minibatcher(4, 0)
    minibatch.add(decoded(0, 4), 0)
    made = minibatch.take(0)
    assert made is not None
    epochs.add(made, quarantined=True)
    record = epochs.cut({}, {}, {}, {})
    assert (record.event_time_ms, record.record_time_ms, record.watermark_ms) == (None, None, None)


def test_one_quarantined_minibatch_too_many_in_a_row_stops_and_commits_nothing_of_them() -> None:
    learner, committer = CountingLearner(poisoned=[1, 2, 4, 5, 6]), StillCommitter()
    with pytest.raises(TooManyQuarantined) as stopped:
        trainer(learner, Feeding(item(0, 40)), committer, quarantine_max=2).run()
    # Two in a row, then a good one: the count began again.
    assert learner.sizes == [4] * 7 and committer.records == []
    assert "3 minibatches in a row" in str(stopped.value)
    assert "p offsets 24 to 27; training.quarantine_max allows 2" in str(stopped.value)
    assert "streamtrain rollback" in str(stopped.value)
