from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamtrain.errors import CorruptRecord, EpochMissing, Fenced, LogError, Superseded
from streamtrain.log.epoch_log import EpochLog
from streamtrain.log.files import Files
from streamtrain.log.fold import fold
from streamtrain.log.format import content_digest, decode, document, tensors
from streamtrain.log.reader import LogReader
from streamtrain.log.record import EpochRecord
from streamtrain.log.recovery import recover, recovered, restored
from streamtrain.log.verify import verify
from tests.reference_log import (
    append_epochs,
    as_dict,
    assert_same_record,
    epoch_record,
    fold_dicts,
    table_rows,
)


@pytest.fixture
def log(tmp_path: Path) -> EpochLog:
    return EpochLog.create(tmp_path / "log", "clicks", {"seed": 1})


def test_a_new_log_is_empty_and_describes_its_model(log: EpochLog) -> None:
    other = EpochLog.open(log.path)
    assert other.model == log.model and other.model.job == {"seed": 1} and len(log.model.model_id) == 32
    assert (other.head(), other.epochs(), other.bases(), list(recover(other)), recovered(other)) == (
        None,
        [],
        [],
        [],
        None,
    )


def test_a_second_create_is_refused_and_harmless(log: EpochLog) -> None:
    with pytest.raises(LogError, match="already"):
        EpochLog.create(log.path, "other", {})
    assert EpochLog.open_or_create(log.path, "other", {}).model == log.model


def test_open_says_when_there_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="there is no epoch log in"):
        EpochLog.open(tmp_path)


@pytest.mark.parametrize("text", [b"", b"[]", b'{"format": 2}', b'{"format": 1, "nmae": "x"}'])
def test_a_damaged_model_json_is_named(log: EpochLog, text: bytes) -> None:
    (log.path / "model.json").write_bytes(text)
    with pytest.raises(CorruptRecord, match=r"model\.json"):
        EpochLog.open(log.path)


def test_what_was_appended_is_read_back_bit_for_bit(log: EpochLog) -> None:
    genesis = epoch_record(0, tables={})
    digest = log.append(genesis)
    record = epoch_record(1, digest, notes={"restart": "1"}, record_time_ms=(5, 6), bad_samples=3)
    assert log.append(record) == log.digest(1)
    assert_same_record(EpochLog.open(log.path).read(0), genesis)
    assert_same_record(EpochLog.open(log.path).read(1), record)


def test_a_reader_sees_each_epoch_once_it_is_appended(log: EpochLog) -> None:
    reader = LogReader.open(log.path)
    for epoch in range(3):
        append_epochs(log, epoch)
        assert reader.head() == log.head() == epoch
    assert reader.epochs() == [0, 1, 2]


def test_a_copy_without_the_directories_that_were_empty_is_read_and_gone_on_from(log: EpochLog) -> None:
    append_epochs(log, 1)
    for name in ("tmp", "bases"):
        (log.path / name).rmdir()
    copy = EpochLog.open(log.path)
    assert (copy.head(), copy.bases(), [record.epoch for record in recover(copy)]) == (1, [], [0, 1])
    assert verify(log.path).ok
    with copy.lock():
        append_epochs(copy, 2)
    assert fold(log.path) == 2 and copy.bases() == [2]


def test_a_missing_epoch_says_what_there_is(log: EpochLog) -> None:
    append_epochs(log, 2)
    with pytest.raises(EpochMissing, match=r"no epoch 3; it has epochs 0 to 2, bases: none"):
        log.read(3)
    with pytest.raises(EpochMissing, match="no base 1"):
        log.read_base(1)


def test_an_epoch_removed_from_the_middle_is_told_from_one_that_is_not_there_yet(log: EpochLog) -> None:
    append_epochs(log, 3)
    log.epoch_path(2).unlink()
    message = (
        r"has no epoch 2; .*It was removed: restore it from a backup, or move all newer .* back to epoch 1$"
    )
    with pytest.raises(EpochMissing, match=message):
        log.read(2)
    fold(log.path, 1)
    with pytest.raises(EpochMissing, match=r"back to epoch 1$"):
        log.read(2)


def test_an_epoch_that_an_overtaken_writer_left_under_a_collected_name_counts_for_nothing(
    log: EpochLog,
) -> None:
    append_epochs(log, 5)
    fold(log.path, 5)
    log.collect(2)
    assert log.epochs() == [4, 5]
    for epoch in (1, 3):
        # Linked by a writer that was paused since, and died before it could take it back.
        stray = EpochLog.create(log.path.parent / f"other{epoch}", "m", {})
        stray.model = log.model
        append_epochs(stray, epoch, writer="late")
        log.epoch_path(epoch).write_bytes(stray.epoch_path(epoch).read_bytes())
        with pytest.raises(
            Superseded, match=r"what comes after it does not follow it.*A newer base holds what it learned"
        ):
            log.read(epoch)
    assert log.read(4).epoch == 4 and log.read(5).epoch == 5
    assert issubclass(Superseded, EpochMissing), "who follows the log goes on from the base"
    assert {int(Path(problem.file).stem) for problem in verify(log.path).problems} == {2, 3}


def test_appending_the_same_record_again_is_success(log: EpochLog) -> None:
    digest = append_epochs(log, 1)
    assert log.append(epoch_record(1, log.digest(0))) == digest


def test_a_second_writer_is_fenced_and_told_by_whom(log: EpochLog) -> None:
    other = EpochLog.open(log.path)
    digest = append_epochs(log, 0)
    log.append(epoch_record(1, digest, writer="host-a:42"))
    with pytest.raises(Fenced, match=r"host-a:42.*epoch 1"):
        other.append(epoch_record(1, digest, writer="host-b:43"))
    assert log.read(1).writer == "host-a:42"
    assert list((log.path / "tmp").iterdir()) == []


def test_a_writer_whose_own_epoch_lost_cannot_go_on_after_the_winners(log: EpochLog) -> None:
    append_epochs(log, 1)
    with pytest.raises(Fenced, match="not the one that this writer continues"):
        log.append(epoch_record(2, "00" * 32))


def test_a_writer_that_slept_through_a_collection_is_fenced(log: EpochLog) -> None:
    append_epochs(log, 1)
    sleeper = EpochLog.open(log.path)
    stale = epoch_record(2, sleeper.digest(1), writer="sleeper")
    append_epochs(log, 9)
    fold(log.path)
    log.collect(1)
    assert not log.epoch_path(2).exists()
    with pytest.raises(Fenced, match="epoch 9"):
        sleeper.append(stale)
    assert log.epochs() == [9]


def test_a_base_that_appears_while_the_epoch_is_linked_takes_the_epoch_back(tmp_path: Path) -> None:
    class Paused(Files):
        """At the link of epoch 2 the process sleeps; meanwhile another writes up to 5, folds and collects."""

        def link(self, source: Path, target: Path) -> None:
            if target == sleeper.epoch_path(2):
                append_epochs(log, 5)
                fold(log.path)
                log.collect(1)
            super().link(source, target)

    log = EpochLog.create(tmp_path / "log", "m", {})
    append_epochs(log, 1)
    sleeper = EpochLog.open(log.path, Paused())
    with pytest.raises(Fenced):
        sleeper.append(epoch_record(2, sleeper.digest(1), writer="sleeper"))
    assert (log.epochs(), LogReader.open(log.path).head()) == ([5], 5)
    assert not log.epoch_path(2).exists()


def test_an_epoch_that_skips_one_is_the_callers_mistake(log: EpochLog) -> None:
    append_epochs(log, 1)
    with pytest.raises(ValueError, match="epoch 3 cannot follow epoch 1"):
        log.append(epoch_record(3, log.digest(1)))


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": -1},
        {"samples": 11},
        {"step_first": 5},
        {"tables": {"u": replace(table_rows([1]), counts=np.zeros(2, np.uint32))}},
        {"tables": {"u": replace(table_rows([1]), weights=np.zeros(2, np.float32))}},
        {"tables": {"": table_rows([1])}},
        {"spans": replace(epoch_record(1).spans, partitions=())},
    ],
)
def test_a_record_that_contradicts_itself_is_not_written(log: EpochLog, changes: dict) -> None:
    with pytest.raises(ValueError):
        log.append(replace(epoch_record(0), **changes))
    assert log.head() is None and list((log.path / "tmp").iterdir()) == []


def test_a_lock_is_held_by_one_and_free_after(log: EpochLog) -> None:
    message = r"another daemon \(pid \d+, host .+\) writes the log"
    with log.lock(), pytest.raises(Fenced, match=message), log.lock():
        pass
    with log.lock():
        pass


def test_the_lock_lets_errors_of_its_body_through(log: EpochLog) -> None:
    with pytest.raises(FileNotFoundError), log.lock():
        raise FileNotFoundError


def test_taking_the_lock_removes_what_the_dead_left_aside(log: EpochLog) -> None:
    (log.path / "tmp" / "1.aa.left").write_bytes(b"x")
    with log.lock():
        assert list((log.path / "tmp").iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"\0" * 4096, b"half"])
def test_a_damaged_newest_epoch_names_the_way_back(log: EpochLog, damage: bytes) -> None:
    append_epochs(log, 3)
    log.epoch_path(3).write_bytes(damage)
    with pytest.raises(
        CorruptRecord, match=rf"{log.epoch_path(3)}: .*newest: move it away to go back one epoch"
    ):
        list(recover(EpochLog.open(log.path)))
    log.epoch_path(3).unlink()
    assert [record.epoch for record in recover(EpochLog.open(log.path))] == [0, 1, 2]


def test_remedies_tell_of_bases_and_backups(log: EpochLog) -> None:
    append_epochs(log, 2)
    fold(log.path, 1)
    append_epochs(log, 5)
    assert "A newer base holds" in log.remedy("epoch", 1)
    assert "Restore it from a backup, or move it and all newer" in log.remedy("epoch", 3)
    assert "Move it away: epoch 0" in log.remedy("base", 1)
    fold(log.path, 5)
    log.collect(1)
    assert "collected" in log.remedy("base", 5)


def test_an_epoch_of_another_history_breaks_the_chain(log: EpochLog) -> None:
    append_epochs(log, 2)
    other = EpochLog.open(shutil.copytree(log.path, log.path.with_name("other")))
    other.epoch_path(2).unlink()
    other = EpochLog.open(other.path)
    append_epochs(other, 3, notes={"other": "history"})
    shutil.copy(other.epoch_path(3), log.epoch_path(3))
    with pytest.raises(CorruptRecord, match="chain is broken"):
        EpochLog.open(log.path).read(3)


def test_a_file_of_another_model_or_number_is_refused(log: EpochLog, tmp_path: Path) -> None:
    append_epochs(log, 1)
    stranger = EpochLog.create(tmp_path / "stranger", "m", {})
    append_epochs(stranger, 1)
    shutil.copy(stranger.epoch_path(0), log.epoch_path(0))
    with pytest.raises(CorruptRecord, match="belongs to model"):
        log.read(0)
    shutil.copy(stranger.epoch_path(1), stranger.epoch_path(2))
    with pytest.raises(CorruptRecord, match="it holds epoch 1"):
        stranger.read(2)


def test_recovery_goes_by_the_newest_base_and_gives_the_same_rows(log: EpochLog) -> None:
    append_epochs(log, 7)
    plain = list(recover(log))
    fold(log.path, 2)
    fold(log.path, 5)
    assert [record.epoch for record in recover(log)] == [5, 6, 7]
    assert [record.epoch for record in recover(log, 4)] == [2, 3, 4]
    by_base = fold_dicts(record.tables["user"] for record in recover(log))
    assert by_base == fold_dicts(record.tables["user"] for record in plain)
    assert recovered(log, 5) is not None
    last = recovered(log)
    assert last is not None and (last.epoch, last.digest, last.samples_total) == (7, log.digest(7), 70)
    with pytest.raises(EpochMissing, match="no epoch 8 yet"):
        list(recover(log, 8))


def test_a_log_of_a_base_alone_goes_on(log: EpochLog) -> None:
    append_epochs(log, 4)
    digest = log.digest(4)
    fold(log.path)
    shutil.rmtree(log.path / "epochs")
    (log.path / "epochs").mkdir()
    moved = EpochLog.open(log.path)
    assert (moved.head(), moved.digest(4), len(list(recover(moved)))) == (4, digest, 1)
    append_epochs(moved, 6)
    assert [record.epoch for record in recover(EpochLog.open(log.path))] == [4, 5, 6]
    assert as_dict(moved.read_base(4).tables["user"]).keys() == {1, 2, *range(10, 15)}


def test_collect_keeps_the_window_the_protected_and_two_bases(log: EpochLog) -> None:
    for upto in (3, 6, 9, 12):
        append_epochs(log, upto)
        fold(log.path)
    assert log.collect(keep_epochs=4, protect=[5, 20]) == 6 + 2
    assert (log.epochs(), log.bases()) == (list(range(6, 13)), [9, 12])
    log.collect(keep_epochs=4)
    assert log.epochs() == [9, 10, 11, 12]


def test_a_reader_finds_the_head_after_its_own_place_was_collected(log: EpochLog) -> None:
    append_epochs(log, 2)
    reader = LogReader.open(log.path)
    assert reader.head() == 2
    append_epochs(log, 9)
    fold(log.path)
    log.collect(1)
    assert reader.head() == 9


def test_content_is_the_same_whoever_writes_it_and_whenever() -> None:
    record = epoch_record(3, "ab" * 32)
    other = replace(record, previous="", writer="b", committed_at_ms=9, notes={"a": "b"})
    assert content_digest(record) == content_digest(other)
    assert content_digest(record) != content_digest(
        replace(record, tables={"user": table_rows([1, 2, 13], seed=4)})
    )
    assert content_digest(record) != content_digest(replace(record, positions={"clicks:0": 31}))


def test_a_restore_begins_again_when_a_fold_collects_what_it_reads(log: EpochLog) -> None:
    append_epochs(log, 5)
    begun: list[list[int]] = []

    def restore(records: Iterator[EpochRecord]) -> int:
        """Meanwhile the fold of a former daemon goes on."""
        begun.append([])
        for record in records:
            begun[-1].append(record.epoch)
            if len(begun) == 1 and record.epoch == 2:
                fold(log.path)
                log.collect(1)
        return begun[-1][-1]

    assert restored(log, restore) == 5
    assert begun == [[0, 1, 2], [5]]


def test_a_restore_of_what_is_gone_says_so(log: EpochLog) -> None:
    append_epochs(log, 5)
    fold(log.path)
    log.collect(1)
    with pytest.raises(EpochMissing):
        restored(log, lambda records: [record.epoch for record in records], upto=3)


def test_a_writer_whose_file_a_successor_removed_is_fenced(log: EpochLog) -> None:
    """Paused between making its file and locking it, it looks dead to who takes the log over (chaos seed 11)."""

    class Removed(Files):
        def link(self, source: Path, target: Path) -> None:
            source.unlink()
            super().link(source, target)

    append_epochs(log, 1)
    paused = EpochLog.open(log.path, Removed())
    with pytest.raises(Fenced, match=r"took the log .* over"):
        paused.append(epoch_record(2, log.digest(1)))
    assert EpochLog.open(log.path).head() == 1


@pytest.mark.parametrize("base", [2, 3])
def test_an_epoch_that_others_went_on_from_stays_when_its_writer_wakes_beside_a_newer_base(
    log: EpochLog, base: int
) -> None:
    """Paused between the link and the sync of the directory, while others append, and fold (simulation seed 300067)."""

    class Paused(Files):
        def link(self, source: Path, target: Path) -> None:
            super().link(source, target)
            others = EpochLog.open(log.path)
            append_epochs(others, base)
            fold(log.path)

    append_epochs(log, 1)
    record = epoch_record(2, log.digest(1))
    assert EpochLog.open(log.path, Paused()).append(record) == log.digest(2)
    assert log.epochs() == list(range(base + 1))


def test_a_writer_that_wakes_when_its_epoch_is_collected_is_fenced(log: EpochLog) -> None:
    """As above, but the others have gone further (simulation seed 300100)."""

    class Paused(Files):
        def link(self, source: Path, target: Path) -> None:
            super().link(source, target)
            others = EpochLog.open(log.path)
            append_epochs(others, 6)
            fold(log.path)
            others.collect(1)

    append_epochs(log, 1)
    with pytest.raises(Fenced, match="gone far beyond epoch 2"):
        EpochLog.open(log.path, Paused()).append(epoch_record(2, log.digest(1)))
    assert log.head() == 6


def test_an_epoch_that_is_taken_back_does_not_return_with_a_power_cut(log: EpochLog) -> None:
    """Its name is removed durably: below a gap it would be damage to `verify` (simulation seed 208053)."""
    calls: list[str] = []

    class Paused(Files):
        def link(self, source: Path, target: Path) -> None:
            others = EpochLog.open(log.path)
            append_epochs(others, 6)
            fold(log.path)
            others.collect(1)
            super().link(source, target)

        def unlink(self, path: Path) -> None:
            calls.append(f"unlink {path.parent.name}")
            super().unlink(path)

        def sync_directory(self, path: Path) -> None:
            calls.append(f"sync {path.name}")
            super().sync_directory(path)

    append_epochs(log, 1)
    with pytest.raises(Fenced):
        EpochLog.open(log.path, Paused()).append(epoch_record(2, log.digest(1)))
    assert "sync epochs" in calls[calls.index("unlink epochs") :]
    assert not log.epoch_path(2).exists()


def test_a_writer_whose_epoch_is_collected_before_it_begins_is_fenced(log: EpochLog) -> None:
    append_epochs(log, 6)
    fold(log.path)
    log.collect(1)
    with pytest.raises(Fenced, match="gone far beyond epoch 1"):
        log.continue_from(1)
    assert log.continue_from(6) == log.digest(6)


def test_a_writer_that_wakes_when_the_head_it_saw_is_collected_is_fenced(log: EpochLog) -> None:
    """Paused between looking for the head and reading its digest (simulation seed 100651)."""

    class Paused(Files):
        def sync_directory(self, path: Path) -> None:
            super().sync_directory(path)
            others = EpochLog.open(log.path)
            append_epochs(others, 6)
            fold(log.path)
            others.collect(1)

    append_epochs(log, 1)
    record = epoch_record(2, log.digest(1))
    with pytest.raises(Fenced, match="gone far beyond epoch 1"):
        EpochLog.open(log.path, Paused()).append(record)


def test_what_is_learned_of_a_record_is_kept_and_a_record_of_whole_ones_says_nothing_of_it() -> None:
    whole = epoch_record(1)
    assert "leaves" not in document(whole, "epoch", "") and "leaves" not in tensors(whole)
    spans = replace(whole.spans, leaves=np.array([[0, 3]]))
    cut = replace(whole, spans=spans, leaves={"clicks:0": 3})
    again = decode(document(cut, "epoch", ""), tensors(cut))
    assert again.leaves == {"clicks:0": 3} and again.spans.leaves.tolist() == [[0, 3]]
    assert content_digest(cut) != content_digest(whole)
    for wrong in (
        {"leaves": {"other:0": 1}},
        {"leaves": {"clicks:0": 0}},
        {"spans": replace(spans, leaves=np.array([[0, -1]]))},
        {"spans": replace(spans, leaves=np.zeros((7, 2), np.int64))},
    ):
        with pytest.raises(ValueError, match="lea"):
            tensors(replace(cut, **wrong))
