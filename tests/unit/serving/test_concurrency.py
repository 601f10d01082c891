"""Readers and the follower at once: every request sees one version whole, and both sides get on."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from streamtrain.exports import ExportRunner
from streamtrain.samples.hashing import feature_id
from streamtrain.serving import Follower
from tests.exporting import History, make_exporter

READERS, VERSIONS = 4, 60
USER, ITEM = feature_id("user", 1), feature_id("item", "a")
# Two slots of two tables and the dense bias of one version cancel out; those of different versions do not.
REQUEST = [{"user": 1, "item": ["a"]}] * 5


def append(history: History, version: int) -> None:
    history.append({"users": {USER: float(version)}, "items": {ITEM: float(version)}}, bias=-2.0 * version)


def test_no_request_ever_sees_two_versions(tmp_path: Path):
    history = History(tmp_path / "log")
    append(history, 0)
    append(history, 1)
    exporter = make_exporter(history.log, tmp_path / "x", base_every_epochs=7, keep_bases=1)
    runner = ExportRunner(history.log, exporter)
    runner.catch_up()
    follower = Follower(tmp_path / "x", piece_samples=2)
    follower.poll()
    done, failures = threading.Event(), []
    progress = [0] * READERS
    moved = threading.Condition()

    def read(number: int) -> None:
        last = 0
        try:
            while not done.is_set():
                scores, version = follower.predict_with_version(REQUEST)
                assert np.all(scores == 0.5), f"a mixture at version {version.epoch}: {scores}"
                assert version.epoch >= last, "a version went back"
                last = version.epoch
                with moved:
                    progress[number] += 1
                    moved.notify_all()
        except BaseException as error:
            failures.append(error)
            done.set()

    threads = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(READERS)]
    for thread in threads:
        thread.start()
    for version in range(2, VERSIONS):
        append(history, version)
        if version % 3 == 0:
            runner.catch_up()
        follower.poll()
        before = list(progress)
        with moved:
            # Neither side starves: between any two rounds of the writer every reader is served.
            assert moved.wait_for(
                lambda before=before: (
                    done.is_set() or all(p > b for p, b in zip(progress, before, strict=True))
                ),
                30,
            )
    runner.catch_up()
    follower.poll()
    done.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not failures, failures
    assert follower.version.epoch == VERSIONS - 1
    assert follower._scorer.compilations == 0
    exporter.close()
