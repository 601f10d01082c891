"""What is computed from a log equals what a dict of rows says, whatever was folded and wherever files were cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.analysis import ranking, snapshot
from streamtrain.analysis.movers import movers
from streamtrain.analysis.ranking import nearest, top
from streamtrain.analysis.rates import rates
from streamtrain.analysis.snapshot import Snapshot, open_snapshot
from streamtrain.analysis.summary import summarise
from streamtrain.errors import ConfigError, EpochMissing, StreamtrainError
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.fold import fold
from streamtrain.log.record import TableRows
from streamtrain.sparse.optimizers import slots_of
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.table import EmbeddingTable
from tests.reference_analysis import applied, cosine, distance, life, norm, octaves, random_parts
from tests.reference_log import append_epochs, epoch_record, table_rows

EPOCHS = 9


def written(path: Path, parts: list[TableRows]) -> EpochLog:
    """A log whose epoch n says `parts[n]` of the table `user`."""
    log = EpochLog.create(path, "m", {})
    previous = ""
    for epoch, part in enumerate(parts):
        previous = log.append(epoch_record(epoch, previous, {"user": part}))
    return log


@pytest.fixture(params=[None, 3, 8], ids=["no base", "a base in between", "a base at the head"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[EpochLog, list[TableRows]]:
    parts = random_parts(np.random.default_rng(5), EPOCHS, 40)
    log = written(tmp_path / "log", parts)
    if request.param is not None:
        fold(log.path, request.param)
    return log, parts


def as_table(rows: Snapshot) -> dict[int, tuple[list[float], int, int]]:
    return {id: row for piece in rows.chunks() for id, row in applied([piece]).items()}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.data())
def test_the_rows_are_those_of_every_epoch_whatever_was_folded_or_held_in_memory(
    tmp_path_factory: pytest.TempPathFactory, seed: int, mapped_max: int, data: st.DataObject
) -> None:
    parts = random_parts(np.random.default_rng(seed), EPOCHS, 12)
    log = written(tmp_path_factory.mktemp("log") / "log", parts)
    for base in sorted(data.draw(st.sets(st.integers(0, EPOCHS - 1), max_size=2))):
        fold(log.path, base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "_MAPPED_MAX", mapped_max)
        patch.setattr(snapshot, "CHUNK_ROWS", 4)
        for epoch in range(EPOCHS):
            found = open_snapshot(log, "user", epoch)
            assert as_table(found) == applied(parts[: epoch + 1])
            assert (np.diff(found.ids.astype(object)) > 0).all()
            assert (found.epoch, found.step_next, found.samples_total) == (epoch, epoch, 10 * epoch)


def test_histograms_are_those_of_all_rows(made: tuple[EpochLog, list[TableRows]]) -> None:
    log, parts = made
    found, expected = summarise(open_snapshot(log, "user")), applied(parts)
    assert found.rows == len(expected) > 20
    for histogram, values in (
        (found.frequency, [count for _, count, _ in expected.values()]),
        (found.age, [EPOCHS - 2 - last for _, _, last in expected.values()]),
        (found.norm, [norm(vector) for vector, _, _ in expected.values()]),
    ):
        assert {bar.low: bar.count for bar in histogram.bars() if bar.count} == octaves(values)


def test_ages_are_right_when_step_numbers_begin_again(tmp_path: Path) -> None:
    rows = TableRows(
        np.array([1, 2], np.uint64),
        *(np.ones((2, 1), np.float32),) * 2,
        np.ones(2, np.uint32),
        np.array([2**32 - 5, 3], np.uint32),
    )
    log = EpochLog.create(tmp_path / "log", "m", {})
    first = 2**32
    log.append(epoch_record(0, "", {}, step_first=first, step_next=first))
    log.append(epoch_record(1, log.digest(0), {"user": rows}, step_first=first, step_next=first + 6))
    found = open_snapshot(log, "user")
    assert found.ages(rows.last_steps).tolist() == [10, 2]
    assert top(found, "last_step", 1).ids.tolist() == [2]
    assert top(found, "age", 1).ids.tolist() == [1]


@pytest.mark.parametrize("measure", ["count", "norm", "last_step"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_top_rows_are_the_largest_and_of_equal_ones_the_smaller_ids(
    made: tuple[EpochLog, list[TableRows]], measure: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_ROWS", 5)
    log, parts = made
    expected = applied(parts[:-1])
    score = {
        "count": lambda id: expected[id][1],
        "norm": lambda id: norm(expected[id][0]),
        "last_step": lambda id: expected[id][2],
    }[measure]
    found = top(open_snapshot(log, "user", EPOCHS - 2), measure, size).ids.tolist()
    best = sorted(expected, key=lambda id: (-round(score(id), 9), id))[:size]
    assert found == best


@pytest.mark.parametrize("by", ["cosine", "dot"])
def test_nearest_rows_are_those_of_comparing_with_every_row(
    made: tuple[EpochLog, list[TableRows]], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_ROWS", 5)
    log, parts = made
    table = applied(parts)
    id = next(id for id, (vector, _, _) in sorted(table.items()) if norm(vector))
    vector = table[id][0]
    found = nearest(open_snapshot(log, "user"), np.array(vector, np.float32), 6, by, id)  # type: ignore[arg-type]
    scores = {
        other: cosine(vector, row) if by == "cosine" else sum(np.multiply(vector, row))
        for other, (row, _, _) in table.items()
        if other != id
    }
    assert id not in found.ids.tolist()
    assert found.ids.tolist() == sorted(scores, key=lambda other: (-round(scores[other], 9), other))[:6]
    assert np.allclose(found.cosines, [cosine(vector, table[other][0]) for other in found.ids.tolist()])
    assert np.allclose(found.dots, [np.dot(vector, table[other][0]) for other in found.ids.tolist()])


@pytest.mark.parametrize(("earlier", "later"), [(3, 8), (8, 3), (4, 4), (0, 8)])
def test_movers_are_told_from_new_and_removed_rows(
    earlier: int, later: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtrain.analysis.movers.CHUNK_ROWS", 5)
    monkeypatch.setattr(snapshot, "CHUNK_ROWS", 5)
    parts = random_parts(np.random.default_rng(11), EPOCHS, 40)
    log = written(tmp_path / "log", parts)
    before, after = applied(parts[: earlier + 1]), applied(parts[: later + 1])
    found = movers(*(open_snapshot(log, "user", epoch) for epoch in (earlier, later)), 1000)
    moved = {id: distance(before[id][0], after[id][0]) for id in before.keys() & after.keys()}
    moved = {id: far for id, far in moved.items() if far}
    assert found.farthest.ids.tolist() == sorted(moved, key=lambda id: (-round(moved[id], 9), id))
    assert np.allclose(found.farthest.scores, sorted(moved.values(), reverse=True))
    assert set(found.largest_new.ids.tolist()) == after.keys() - before.keys()
    assert set(found.largest_removed.ids.tolist()) == before.keys() - after.keys()
    assert found.moved == len(moved) == found.distances.count
    assert found.new == len(after.keys() - before.keys())
    assert found.removed == len(before.keys() - after.keys())
    assert found.unchanged == len(before.keys() & after.keys()) - len(moved)


def test_the_lists_of_movers_are_as_long_as_was_asked_and_the_counts_are_of_all(
    made: tuple[EpochLog, list[TableRows]],
) -> None:
    log, _ = made
    found = movers(*(open_snapshot(log, "user", epoch) for epoch in (4, 8)), 2)
    assert [len(best.ids) for best in (found.farthest, found.largest_new)] == [2, 2]
    assert found.moved > 2


@pytest.mark.parametrize("count", [1, 4, 100])
def test_rates_tell_new_changed_and_removed_rows_of_each_epoch(
    made: tuple[EpochLog, list[TableRows]], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtrain.analysis.rates._CHUNK_IDS", 3)
    log, parts = made
    found = rates(log, "user", count)
    assert [(one.new, one.changed, one.removed) for one in found] == life(parts)[-count:]
    assert [one.epoch for one in found] == list(range(EPOCHS))[-count:]
    assert sum(one.samples for one in found) == 10 * min(count, EPOCHS - 1)


def test_rates_begin_behind_the_oldest_base_where_older_epochs_are_collected(tmp_path: Path) -> None:
    parts = random_parts(np.random.default_rng(2), EPOCHS, 40)
    log = written(tmp_path / "log", parts)
    fold(log.path, 5)
    log.collect(1)
    assert [one.epoch for one in rates(log, "user", 100)] == [6, 7, 8]
    assert [(one.new, one.changed, one.removed) for one in rates(log, "user", 100)] == life(parts)[6:]
    assert rates(log, "user", 100, upto=5) == [] == rates(log, "user", 0)


def test_an_epoch_that_cannot_be_made_is_refused_with_those_that_can(tmp_path: Path) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    with pytest.raises(EpochMissing, match="is empty: the model has not started yet"):
        open_snapshot(log, "user")
    append_epochs(log, 8)
    fold(log.path, 5)
    log.collect(1)
    for epoch in (4, 9, -1):
        with pytest.raises(EpochMissing, match=f"epoch {epoch} cannot be made.* epochs 5 to 8 can"):
            open_snapshot(log, "user", epoch)
    assert open_snapshot(log, "user", 5).epoch == 5


def test_a_table_without_a_row_is_empty_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {"tables": {"user": {"dim": 3}, "item": {"dim": 2}}})
    append_epochs(log, 2)
    found = open_snapshot(log, "item")
    assert (len(found), found.dim, list(found.chunks())) == (0, 2, [])
    assert found.find(np.array([1], np.uint64)).tolist() == [-1]
    assert summarise(found).norm.bars() == []
    assert len(top(found, "norm", 5).ids) == 0
    with pytest.raises(ConfigError, match="there is no table 'users'; there are: item, user"):
        open_snapshot(log, "users")


def test_a_snapshot_stays_whole_when_its_files_are_collected(tmp_path: Path) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    append_epochs(log, 6)
    found = open_snapshot(log, "user")
    before = as_table(found)
    append_epochs(log, 9)
    fold(log.path)
    log.collect(1)
    assert not log.epoch_path(3).exists()
    assert as_table(found) == before


def test_rates_are_told_again_when_a_base_that_was_there_lets_epochs_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    append_epochs(log, 6)
    fold(log.path, 4)
    read, reads = EpochLog.read, []

    def collected_at_the_second(self: EpochLog, epoch: int, **options: bool) -> object:
        reads.append(epoch)
        if len(reads) == 2:
            log.collect(1)
        return read(self, epoch, **options)

    monkeypatch.setattr(EpochLog, "read", collected_at_the_second)
    assert [one.epoch for one in rates(log, "user", 100)] == [5, 6]


@pytest.mark.parametrize("what", ["rows", "rates"])
def test_what_is_collected_while_it_is_read_is_read_again_from_the_newer_base(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    append_epochs(log, 6)
    read, reads = EpochLog.read, []

    def collected_at_the_third(self: EpochLog, epoch: int, **options: bool) -> object:
        reads.append(epoch)
        if len(reads) == 3:
            append_epochs(log, 9)
            fold(log.path, 7)
            log.collect(1)
        return read(self, epoch, **options)

    monkeypatch.setattr(EpochLog, "read", collected_at_the_third)
    if what == "rows":
        assert open_snapshot(log, "user").epoch == 9
    else:
        assert [(one.epoch, one.new) for one in rates(log, "user", 5)] == [(8, 1), (9, 1)]
    assert not log.epoch_path(2).exists() and len(reads) > 3


def test_norms_do_not_overflow() -> None:
    assert ranking.norms(np.full((1, 4), 2e38, np.float32)).tolist() == pytest.approx([4e38], rel=1e-6)


def test_tables_whose_dim_changed_are_not_compared(tmp_path: Path) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    append_epochs(log, 1)
    wide = table_rows([1], dim=5)
    log.append(epoch_record(2, log.digest(1), {"other": wide}))
    with pytest.raises(ConfigError, match="has dim 3 at epoch 1 and 5 at epoch 2"):
        movers(open_snapshot(log, "user", 1), open_snapshot(log, "other", 2), 1)


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_rows_of_a_table_that_decays_are_shown_as_the_trainer_and_followers_see_them(
    optimizer: str, tmp_path: Path
) -> None:
    decay = {"every_steps": 2, "weights": 0.5, "slots": 0.25}
    table = {"dim": 3, "optimizer": {"kind": optimizer}, "decay": decay}
    made = TableSettings.model_validate(table)
    floats = slots_of(made.optimizer, 3)
    log = EpochLog.create(tmp_path / "log", "m", {"tables": {"user": table}})
    previous, parts = "", []
    for epoch in range(6):
        # Each row once, so that they have faded for a while, each for another.
        parts.append(table_rows([10 + epoch], seed=epoch, slots=floats))
        previous = log.append(epoch_record(epoch, previous, {"user": parts[-1]}))
    for at in (2, 5):
        found = open_snapshot(log, "user", at)
        trainer = EmbeddingTable(
            "user", 3, init=made.init, seed=0, rows_max=9, optimizer=made.optimizer, decay=made.decay
        )
        for part in parts[: at + 1]:
            trainer.load(part)
        trainer.at(at)
        rows = found.rows(0, len(found))
        assert rows.weights.tobytes() == trainer.lookup(found.ids).tobytes()
        assert rows.weights[0].tobytes() == (parts[0].weights[0] * np.float32(0.5 ** (at // 2))).tobytes()
        statistics = parts[0].slots[0] * np.float32(0.25 ** (at // 2))
        if optimizer == "adam":  # whose last is a number of updates
            statistics[-1] = parts[0].slots[0, -1]
        assert rows.slots[0].tobytes() == statistics.tobytes()


def test_no_room_for_temporary_files_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EpochLog.create(tmp_path / "log", "m", {})
    append_epochs(log, 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StreamtrainError, match=r"temporary files find no room .*set TMPDIR"):
        open_snapshot(log, "user")
