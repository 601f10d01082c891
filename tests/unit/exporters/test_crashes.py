"""The exporter dies at every call that reaches the disk, and by kill -9: what followers see is always whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporters.deltas import DeltaExporter, DeltaSettings
from streamtrain.exports import ExportRunner
from streamtrain.log.files import Files
from streamtrain.serving import Follower
from streamtrain.serving.files import read_export
from streamtrain.serving.manifest import Manifest
from streamtrain.serving.model import ServedModel
from tests.exporting import History, held

CALLS = ("make_directory", "create", "write", "patch", "sync", "link", "replace", "unlink", "sync_directory")


class Crash(BaseException):
    """The process is gone: nothing that it would do afterwards happens."""


class DyingFiles(Files):
    """The first `calls_max` calls that change the disk happen, no later one does.

    Attributes:
      calls: calls so far.
    """

    def __init__(self, calls_max: int) -> None:
        self.calls, self._calls_max = 0, calls_max

    def _call(self, name: str, *arguments: object) -> object:
        self.calls += 1
        if self.calls > self._calls_max:
            raise Crash
        return getattr(Files, name)(self, *arguments)


for _name in CALLS:
    setattr(DyingFiles, _name, lambda self, *arguments, _name=_name: self._call(_name, *arguments))


def export_all(history: History, path: Path, files: Files | None, compression: str = "none") -> None:
    """Exports everything, waiting for each base."""
    settings = DeltaSettings(path=str(path), base_every_epochs=2, keep_bases=1, compression=compression)
    exporter = None
    try:
        exporter = DeltaExporter(settings, history.log.model, files)
        runner, head = ExportRunner(history.log, exporter), history.log.head()
        while exporter.position() is None or exporter.position().epoch < head:
            rounds = iter([False, True])
            runner.catch_up(lambda rounds=rounds: next(rounds))
            if exporter._folding is not None:
                exporter._folding.exception(timeout=20)
    finally:
        if exporter is not None:
            # Death lets go of the lock, and ends the thread that folds.
            exporter.close()


def check(path: Path) -> int:
    """Everything that the published manifest names is whole. Returns its head's epoch, -1 without a manifest."""
    if not (path / "manifest.json").exists():
        return -1
    manifest, model = Manifest.read(path / "manifest.json"), ServedModel.read(path / "model.json")
    for entry in (*manifest.bases, *manifest.deltas):
        read_export(path, entry, model)
    return manifest.head.epoch


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    made = History(tmp_path_factory.mktemp("crashes") / "log")
    made.append()
    for weight in (1.0, 2.0, 3.0):
        made.append({"users": {int(weight): weight, 1: weight}, "items": {0: weight, int(weight): None}})
    return made


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_crash_after_any_call_leaves_a_whole_export_that_goes_on(history, tmp_path, compression):
    counting = DyingFiles(10**9)
    export_all(history, tmp_path / "whole", counting, compression)
    assert counting.calls > 50
    for last in range(counting.calls):
        path = tmp_path / str(last)
        with contextlib.suppress(Crash):
            export_all(history, path, DyingFiles(last), compression)
        before = check(path)
        export_all(history, path, None, compression)
        assert before <= check(path) == 3, f"after a crash behind call {last}"
        # A base that was folded but not yet published is an orphan as well; a start removes it.
        DeltaExporter(DeltaSettings(path=str(path)), history.log.model).close()
        names = Manifest.read(path / "manifest.json").names
        there = {f"{file.parent.name}/{file.name}" for file in path.glob("*/*.safetensors*")}
        assert there == set(names), f"orphans after a crash behind call {last}"
        assert not list((path / "tmp").iterdir())


EXPORT_FOREVER = """
import sys
from exporters.deltas import DeltaExporter, DeltaSettings
from streamtrain.exports import ExportRunner
from streamtrain.log.reader import LogReader

log = LogReader.open(sys.argv[1])
exporter = DeltaExporter(DeltaSettings(path=sys.argv[2], base_every_epochs=5, keep_bases=2), log.model)
ExportRunner(log, exporter).catch_up()
exporter.close()
"""


def test_kill_9_at_any_moment_leaves_a_whole_export(tmp_path):
    epochs = 120
    history = History(tmp_path / "log")
    history.append()
    for epoch in range(1, epochs + 1):
        history.append(
            {"users": {i: float(epoch) for i in range(epoch % 7 * 50)}, "items": {epoch % 5: float(epoch)}}
        )
    path = tmp_path / "export"
    follower = Follower(path, piece_samples=1)
    command = [sys.executable, "-c", EXPORT_FOREVER, str(history.log.path), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    for stop_at in (1, 17, 44, 80):
        process = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 60
        while check_head(path) < stop_at:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        check(path)
        follower.poll()
        assert held(follower) == history.oracle[follower.version.epoch]
    subprocess.run(command, env=environment, check=True, timeout=60)
    assert check(path) == epochs
    follower.poll()
    assert (held(follower), follower.status.last_error) == (history.oracle[epochs], None)


def check_head(path: Path) -> int:
    """The published head while another process exports; the manifest is replaced atomically, so it always parses."""
    return Manifest.read(path / "manifest.json").head.epoch if (path / "manifest.json").exists() else -1
