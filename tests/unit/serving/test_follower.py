"""What a follower does with an export: apply, refuse, fall back, wait."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streamtrain.errors import BadSample, ExportError
from streamtrain.exports import ExportRunner
from streamtrain.serving import Follower
from streamtrain.serving.manifest import Entry, Manifest
from tests.exporting import History, held, make_exporter


class Exported:
    """A log with an exporter at its head."""

    def __init__(self, path: Path, **settings: int | str) -> None:
        self.path, self._settings = path / "export", {"base_every_epochs": 1000, **settings}
        self.history = History(path / "log")
        self.history.append()
        self.open()

    def open(self) -> None:
        self.exporter = make_exporter(self.history.log, self.path, **self._settings)
        self.runner = ExportRunner(self.history.log, self.exporter)
        self.runner.catch_up()

    def close(self) -> None:
        self.exporter.close()

    def learn(self, weight: float, **fields: object) -> None:
        """Commits and exports an epoch that gives row `epoch` of both tables the weight."""
        epoch = len(self.history.oracle)
        self.history.append({"users": {epoch: weight}, "items": {epoch: -weight}}, **fields)
        self.runner.catch_up()

    def wait_for_base(self) -> None:
        """Lets the fold that runs come to its end; the next `learn` publishes its base."""
        folding = self.exporter._folding
        assert folding is not None
        folding.exception(timeout=20)

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.path / "manifest.json")

    def file(self, entry: Entry) -> Path:
        return self.path / entry.name


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[Exported]:
    made = Exported(tmp_path)
    yield made
    made.close()


def follow(exported: Exported) -> Follower:
    return Follower(exported.path, piece_samples=1)


def test_a_follower_holds_what_the_log_says_at_every_version(exported):
    follower = follow(exported)
    for weight in range(5):
        assert follower.poll()
        assert held(follower) == exported.history.oracle[follower.version.epoch]
        exported.learn(float(weight))
    assert follower.rows == {"users": 4, "items": 4}


def test_a_version_says_what_it_learned_from(exported):
    exported.learn(1.0)
    follower = follow(exported)
    follower.poll()
    version = follower.version
    assert version.position == exported.runner.status.position
    assert version.position.digest == exported.history.log.digest(1)
    lineage = version.lineage
    assert (lineage.samples, lineage.samples_total, lineage.positions) == (10, 10, {"topic:0": 10})
    assert (lineage.event_time_ms, lineage.record_time_ms) == ((1, 2), (500, 1_000))
    assert (lineage.committed_at_ms, lineage.watermark_ms) == (1_000, 1)
    assert version.exported_at_ms <= version.visible_at_ms


def test_nothing_is_done_while_nothing_is_new(exported):
    follower = follow(exported)
    assert [follower.poll(), follower.poll()] == [True, False]
    assert follower.status.last_error is None


def test_before_the_first_export_it_says_what_is_missing(tmp_path):
    follower = Follower(tmp_path / "nowhere")
    assert not follower.poll()
    assert "manifest.json" in follower.status.last_error
    with pytest.raises(ExportError, match=r"no version of .*nowhere is loaded"):
        follower.predict([{}])
    with pytest.raises(TimeoutError, match="nothing is served"):
        follower.wait_for(0, 0.0)


def test_a_damaged_delta_is_refused_and_the_version_held_stays(exported, caplog):
    exported.learn(1.0)
    follower = follow(exported)
    follower.poll()
    exported.learn(2.0)
    path = exported.file(exported.manifest.deltas[-1])
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        assert [follower.poll(), follower.poll()] == [False, False]
    assert path.name in follower.status.last_error
    assert (follower.version.epoch, follower.status.refused) == (1, 2)
    assert held(follower) == exported.history.oracle[1]
    assert len(caplog.records) == 1, "the same fault is told once"
    follower.predict([{"user": 1}])

    path.write_bytes(sound)
    assert follower.poll()
    assert (follower.version.epoch, follower.status.last_error) == (2, None)


@pytest.mark.parametrize("harm", ["gone", "empty", "cut", "another", "header"])
def test_whatever_happened_to_a_delta_nothing_of_it_is_served(exported, harm):
    follower = follow(exported)
    exported.learn(1.0)
    exported.learn(2.0)
    first, second = (exported.file(entry) for entry in exported.manifest.deltas)
    content = second.read_bytes()
    match harm:
        case "gone":
            second.unlink()
        case "empty":
            second.write_bytes(b"")
        case "cut":
            second.write_bytes(content[: len(content) // 2])
        case "another":
            second.write_bytes(first.read_bytes())
        case "header":
            second.write_bytes(content.replace(b'"epoch\\":2', b'"epoch\\":3'))
    assert follower.poll()
    assert held(follower) == exported.history.oracle[1]
    assert second.name in follower.status.last_error


def test_a_damaged_delta_is_passed_by_with_a_newer_base(tmp_path):
    exported = Exported(tmp_path, base_every_epochs=3, keep_bases=2)
    follower = follow(exported)
    follower.poll()
    for weight in (1.0, 2.0, 3.0):
        exported.learn(weight)
    exported.wait_for_base()
    exported.learn(4.0)
    exported.file(exported.manifest.deltas[1]).write_bytes(b"spoilt")
    assert follower.poll()
    assert held(follower) == exported.history.oracle[4]
    assert (follower.status.fallbacks, follower.status.refused, follower.status.last_error) == (1, 1, None)
    exported.close()


def test_a_version_in_service_is_never_replaced_by_an_older_one(tmp_path):
    exported = Exported(tmp_path)
    follower = follow(exported)
    for weight in (1.0, 2.0, 3.0):
        exported.learn(weight)
    follower.poll()
    # The export is begun anew, from the log's beginning, and is behind the follower for a while.
    exported.close()
    (exported.path / "manifest.json").unlink()
    exporter = make_exporter(exported.history.log, exported.path)
    rounds = iter([False, False, True])
    ExportRunner(exported.history.log, exporter).catch_up(stop=lambda: next(rounds))
    assert exported.manifest.head.epoch == 1
    assert not follower.poll()
    assert "stays in service" in follower.status.last_error
    runner = ExportRunner(exported.history.log, exporter)
    runner.catch_up()
    assert not follower.poll(), "the new chain holds the very version that is served"
    assert (follower.status.last_error, follower.status.fallbacks) == (None, 0)
    exported.history.append({"users": {9: 9.0}})
    runner.catch_up()
    assert follower.poll()
    assert held(follower) == exported.history.oracle[4]
    exporter.close()


def test_a_follower_that_was_away_for_too_long_loads_a_base(tmp_path, caplog):
    exported = Exported(tmp_path, base_every_epochs=2, keep_bases=1)
    follower = follow(exported)
    follower.poll()
    for weight in (1.0, 2.0):
        exported.learn(weight)
    exported.wait_for_base()
    exported.learn(3.0)
    assert [entry.epoch for entry in exported.manifest.bases] == [2]
    with caplog.at_level(logging.WARNING):
        assert follower.poll()
    assert "no chain of deltas leads from epoch 0" in caplog.text
    assert (follower.status.fallbacks, follower.status.bases_loaded, follower.status.last_error) == (
        1,
        2,
        None,
    )
    assert held(follower) == exported.history.oracle[3]
    exported.close()


def test_a_damaged_newest_base_sends_a_new_follower_to_the_older_one(tmp_path):
    exported = Exported(tmp_path, base_every_epochs=2, keep_bases=2)
    for weight in (1.0, 2.0):
        exported.learn(weight)
    exported.wait_for_base()
    exported.learn(3.0)
    exported.file(exported.manifest.bases[-1]).write_bytes(b"spoilt")
    follower = follow(exported)
    assert follower.poll()
    assert held(follower) == exported.history.oracle[3]
    assert (follower.status.refused, follower.status.last_error) == (1, None)
    exported.close()


def test_another_model_in_the_directory_is_not_served_by_mistake(exported, tmp_path):
    follower = follow(exported)
    follower.poll()
    other = History(tmp_path / "other")
    other.append()
    exported.close()
    for file in ("manifest.json", "model.json"):
        (exported.path / file).unlink()
    exporter = make_exporter(other.log, exported.path)
    ExportRunner(other.log, exporter).catch_up()
    assert not follower.poll()
    assert "restart the follower" in follower.status.last_error
    follower.predict([{}])
    exporter.close()


def test_a_log_that_was_set_back_is_followed_through_a_base(exported):
    follower = follow(exported)
    for weight in (1.0, 2.0):
        exported.learn(weight)
    follower.poll()
    # An operator moves the newest epoch away; its samples are learned again, to another epoch 2.
    log = exported.history.log
    log.epoch_path(2).unlink()
    del exported.history.oracle[2]
    exported.history._previous = log.digest(1)
    exported.history.log = type(log).open(log.path)
    exported.runner = ExportRunner(exported.history.log, exported.exporter)
    for weight in (7.0, 8.0):
        exported.learn(weight)
    follower.poll()
    assert follower.version.epoch == 3
    assert held(follower) == exported.history.oracle[3]
    assert follower.status.fallbacks == 1


def test_a_delta_that_fails_half_way_is_never_served_in_part(exported, monkeypatch):
    follower = follow(exported)
    exported.learn(1.0)
    follower.poll()
    exported.learn(2.0)
    table = follower._served._tables["items"]
    monkeypatch.setattr(table, "load", lambda rows: (_ for _ in ()).throw(OSError("no memory for a page")))
    # The table of users was written already; only a base makes it whole again, and there is one.
    assert follower.poll()
    assert (held(follower), follower.status.last_error) == (
        exported.history.oracle[1],
        "no memory for a page",
    )
    assert follower.poll()
    assert (held(follower), follower.status.last_error) == (exported.history.oracle[2], None)


def test_freshness_counts_the_deltas_that_came_while_following(exported):
    now_s = [100.0]
    follower = Follower(exported.path, piece_samples=1, clock=lambda: now_s[0])
    exported.learn(1.0)
    follower.poll()
    assert follower.freshness.deltas == 0, "what was there before says nothing"
    exported.learn(2.0, record_time_ms=(100_000, 100_900), committed_at_ms=101_000)
    now_s[0] = 101.25
    follower.poll()
    report = follower.freshness
    assert (report.deltas, report.samples) == (1, 10)
    assert (report.event_to_visible_p99_ms, report.commit_to_visible_p99_ms) == (1_250, 250)
    exported.learn(3.0, samples=0, record_time_ms=None, event_time_ms=None)
    follower.poll()
    assert follower.freshness.deltas == 1, "an epoch without samples is as old as nothing"


def test_a_thread_follows_until_it_is_stopped(exported):
    with Follower(exported.path, poll_s=0.001, piece_samples=1) as follower:
        assert follower.version.epoch == 0, "start looks once before it returns"
        exported.learn(1.0)
        assert follower.wait_for(1, 20.0).epoch == 1
    exported.learn(2.0)
    assert follower.version.epoch == 1
    assert follower.wait_for(2, 20.0).epoch == 2, "without a thread, waiting polls"
    follower.stop()


def test_requests_are_bounded_and_name_what_is_wrong(exported):
    follower = Follower(exported.path, piece_samples=1, request_samples_max=2)
    follower.poll()
    assert follower.predict([]).shape == (0, 1)
    assert follower.predict([{}, {}]).shape == (2, 1)
    with pytest.raises(ValueError, match="3 samples is larger than request_samples_max = 2"):
        follower.predict([{}, {}, {}])
    with pytest.raises(BadSample, match=r"user.*sample 1"):
        follower.predict([{"user": 1}, {"user": "one"}])


def test_scores_are_probabilities_of_the_version_held(exported):
    follower = follow(exported)
    follower.poll()
    scores, version = follower.predict_with_version([{"price": [1.0, 2.0]}])
    assert (scores.dtype, scores.tolist(), version.epoch) == (np.float32, [[0.5]], 0)
    exported.history.append(bias=1.0)
    exported.runner.catch_up()
    follower.poll()
    scores, version = follower.predict_with_version([{"price": [1.0, 2.0]}])
    assert version.epoch == 1
    assert scores[0, 0] == pytest.approx(1 / (1 + np.exp(-4.0)), abs=1e-7)
