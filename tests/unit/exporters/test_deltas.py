"""What the delta exporter writes, keeps, resumes from and refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import resource
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors import safe_open

from exporters import delta_fold
from exporters.deltas import DeltaExporter, DeltaSettings
from streamtrain import plugins
from streamtrain.errors import DeltaGap, ExportError
from streamtrain.exports import ExportRunner
from streamtrain.log.files import Files
from streamtrain.log.fold import fold
from streamtrain.log.model import ModelDescription
from streamtrain.serving import Follower
from streamtrain.serving.files import read_export
from streamtrain.serving.manifest import Manifest
from streamtrain.serving.packed import unpacked
from tests.exporting import JOB, History, held, make_exporter


@pytest.fixture
def history(tmp_path: Path) -> History:
    made = History(tmp_path / "log")
    made.append()
    return made


def learn(history: History, *weights: float) -> None:
    for weight in weights:
        epoch = len(history.oracle)
        history.append({"users": {epoch: weight}, "items": {0: weight}}, bias=weight)


def settle(exporter: DeltaExporter) -> None:
    if exporter._folding is not None:
        exporter._folding.exception(timeout=20)


def manifest(exporter: DeltaExporter) -> Manifest:
    return Manifest.read(exporter._directory.path / "manifest.json")


def contents(exporter: DeltaExporter, name: str) -> dict[str, dict[int, float]]:
    """By table, what a base or delta file holds."""
    entry = next(e for e in (*manifest(exporter).bases, *manifest(exporter).deltas) if e.name == name)
    file = read_export(exporter._directory.path, entry, exporter._model)
    return {
        table: dict(zip(rows.ids.tolist(), rows.weights[:, 0].tolist(), strict=True))
        for table, rows in file.tables.items()
    }


def test_the_plugin_is_found_by_its_name():
    assert plugins.load("exporters", "deltas") is DeltaExporter


def test_a_delta_is_a_safetensors_file_with_weights_only_and_its_own_digest(history, tmp_path):
    history.append({"users": {5: 2.5, 6: None}}, bias=3.0)
    exporter = make_exporter(history.log, tmp_path / "x")
    ExportRunner(history.log, exporter).catch_up()
    exporter.close()
    path = tmp_path / "x/deltas/00000000000000000001.safetensors"
    with safe_open(path, "np") as file:
        metadata, names = file.metadata(), set(file.keys())
        assert file.get_tensor("tables/users/ids").tolist() == [5]
        assert file.get_tensor("tables/users/weights").tolist() == [[2.5]]
        assert file.get_tensor("tables/users/tombstones").tolist() == [6]
        assert file.get_tensor("tables/items/weights").shape == (0, 1)
    parts = {name.split("/")[-1] for name in names if name.startswith("tables/")}
    assert parts == {"ids", "weights", "tombstones"}
    dense = {name for name in names if not name.startswith("tables/")}
    assert dense
    assert all(name.startswith("dense/params/") for name in dense)
    document = json.loads(metadata["streamtrain"])
    assert (document["kind"], document["epoch"], document["model_id"]) == (
        "delta",
        1,
        history.log.model.model_id,
    )
    assert (document["version"], document["previous"]) == (history.log.digest(1), history.log.digest(0))
    zeroed = path.read_bytes().replace(metadata["digest"].encode(), b"0" * 64, 1)
    assert hashlib.sha256(zeroed).hexdigest() == metadata["digest"]
    entry = json.loads((tmp_path / "x/manifest.json").read_bytes())["deltas"][0]
    assert (entry["digest"], entry["size_bytes"]) == (metadata["digest"], path.stat().st_size)


def test_an_epoch_without_changes_is_a_delta_too(history, tmp_path):
    history.append(samples=0, event_time_ms=None, record_time_ms=None)
    exporter = make_exporter(history.log, tmp_path / "x")
    assert ExportRunner(history.log, exporter).catch_up() == 1
    assert contents(exporter, manifest(exporter).deltas[0].name) == {"users": {}, "items": {}}
    exporter.close()


def test_the_same_epoch_exported_twice_is_the_same_bytes(history, tmp_path):
    learn(history, 1.0)
    files = []
    for name, now in (("a", 1.0), ("b", 2.0)):
        settings = DeltaSettings(path=str(tmp_path / name))
        exporter = DeltaExporter(settings, history.log.model, clock=lambda now=now: now)
        ExportRunner(history.log, exporter).catch_up()
        files.append([(tmp_path / name / file).read_bytes() for file in manifest(exporter).names])
        exporter.close()
    assert files[0] == files[1]


def test_bases_are_folded_aside_and_old_files_go(history, tmp_path):
    exporter = make_exporter(history.log, tmp_path / "x", base_every_epochs=3, keep_bases=2)
    runner = ExportRunner(history.log, exporter)
    for weight in range(1, 12):
        learn(history, float(weight))
        runner.catch_up()
        settle(exporter)
        there = {f"{f.parent.name}/{f.name}" for f in (tmp_path / "x").glob("*/*.safetensors")}
        assert set(manifest(exporter).names) <= there, "whatever is named is there"
    now = manifest(exporter)
    assert [base.epoch for base in now.bases] == [6, 9]
    assert [delta.epoch for delta in now.deltas] == [7, 8, 9, 10, 11]
    # Ids ascend, the last weight wins, tombstones are gone: what a slow dictionary says.
    for base in now.bases:
        assert contents(exporter, base.name) == history.oracle[base.epoch]
        file = read_export(tmp_path / "x", base, exporter._model)
        assert all(np.all(rows.ids[:-1] < rows.ids[1:]) for rows in file.tables.values())
        assert (file.lineage.samples, file.lineage.event_time_ms) == (10 * base.epoch, (1, base.epoch + 1))
    exporter.close()


def test_a_long_chain_is_folded_in_steps_that_leave_nothing_but_the_base(history, tmp_path, monkeypatch):
    folded = {}
    for sources in (320, 2):
        monkeypatch.setattr(delta_fold, "SOURCES_MAX", sources)
        opened: list[int] = []
        step = delta_fold._fold_step

        def counting(directory, chain, *rest, step=step, opened=opened):
            opened.append(len(chain))
            return step(directory, chain, *rest)

        with monkeypatch.context() as counted:
            counted.setattr(delta_fold, "_fold_step", counting)
            exporter = make_exporter(history.log, tmp_path / str(sources), base_every_epochs=5)
            runner = ExportRunner(history.log, exporter)
            while len(history.oracle) < 7:
                learn(history, float(len(history.oracle)))
            runner.catch_up()
            settle(exporter)
            learn(history, 9.0)
            runner.catch_up()
        now = manifest(exporter)
        base = now.bases[-1]
        assert base.epoch == now.bases[0].epoch + 5
        there = {f"{f.parent.name}/{f.name}" for f in (tmp_path / str(sources)).glob("*/*.safetensors")}
        assert there == set(now.names)
        file = read_export(tmp_path / str(sources), base, exporter._model)
        folded[sources] = opened, contents(exporter, base.name), file.lineage, base.version
        exporter.close()
    assert [opened for opened, *_ in folded.values()] == [[6], [3, 3, 2]]
    assert folded[2][1:] == folded[320][1:]


def test_a_fold_in_steps_that_is_stopped_leaves_no_base_between(history, tmp_path, monkeypatch):
    monkeypatch.setattr(delta_fold, "SOURCES_MAX", 2)
    steps: list[int] = []
    step = delta_fold._fold_step

    def stopping(directory, chain, *rest):
        if steps:
            raise delta_fold.FoldStopped
        steps.append(len(chain))
        return step(directory, chain, *rest)

    monkeypatch.setattr(delta_fold, "_fold_step", stopping)
    learn(history, 1.0, 2.0, 3.0)
    exporter = make_exporter(history.log, tmp_path / "x", base_every_epochs=3)
    ExportRunner(history.log, exporter).catch_up()
    learn(history, 4.0, 5.0, 6.0)
    ExportRunner(history.log, exporter).catch_up()
    settle(exporter)
    there = {f"{f.parent.name}/{f.name}" for f in (tmp_path / "x").glob("*/*.safetensors")}
    assert steps == [3] and there == set(manifest(exporter).names)
    exporter.close()


def test_a_restart_goes_on_where_the_manifest_ends_and_removes_orphans(history, tmp_path):
    learn(history, 1.0)
    exporter = make_exporter(history.log, tmp_path / "x")
    ExportRunner(history.log, exporter).catch_up()
    exporter.close()
    exporter.close()
    for orphan in ("deltas/00000000000000000002.safetensors", "bases/00000000000000000001.safetensors"):
        (tmp_path / "x" / orphan).write_bytes(b"half")
    learn(history, 2.0)
    again = make_exporter(history.log, tmp_path / "x")
    assert not list((tmp_path / "x").glob("*/00000000000000000002.safetensors"))
    assert again.position() == (1, history.log.digest(1))
    runner = ExportRunner(history.log, again)
    assert runner.catch_up() == 2
    assert (runner.status.exported, runner.status.rebases, runner.status.last_error) == (1, 0, None)
    again.close()


def test_a_record_that_does_not_follow_is_refused(history, tmp_path):
    learn(history, 1.0, 2.0, 3.0)
    exporter = make_exporter(history.log, tmp_path / "x")
    with pytest.raises(DeltaGap, match="follows nothing"):
        exporter.export(history.log.read(1), history.log.digest(1))
    runner = ExportRunner(history.log, exporter)
    rounds = iter([False, False, True])
    assert runner.catch_up(lambda: next(rounds)) == 1
    with pytest.raises(DeltaGap, match="does not follow epoch 1"):
        exporter.export(history.log.read(3), history.log.digest(3))
    assert exporter.position().epoch == 1
    exporter.close()


def test_epochs_that_the_log_no_longer_has_are_passed_by_with_its_base(history, tmp_path):
    learn(history, 1.0)
    exporter = make_exporter(history.log, tmp_path / "x")
    runner = ExportRunner(history.log, exporter)
    runner.catch_up()
    learn(history, 2.0, 3.0, 4.0)
    fold(history.log.path, 3)
    for epoch in (0, 1, 2):
        history.log.epoch_path(epoch).unlink()
    assert runner.catch_up() == 4
    now = manifest(exporter)
    assert ([base.epoch for base in now.bases], [delta.epoch for delta in now.deltas]) == ([3], [4])
    assert contents(exporter, now.bases[0].name) == history.oracle[3]
    assert runner.status.rebases == 2
    exporter.close()


def test_damage_in_its_own_files_is_healed_from_the_log(history, tmp_path):
    exporter = make_exporter(history.log, tmp_path / "x", base_every_epochs=2)
    runner = ExportRunner(history.log, exporter)
    learn(history, 1.0)
    runner.catch_up()
    (tmp_path / "x" / manifest(exporter).deltas[0].name).write_bytes(b"spoilt")
    learn(history, 2.0)
    runner.catch_up()
    settle(exporter)
    learn(history, 3.0)
    runner.catch_up()
    learn(history, 4.0)
    runner.catch_up()
    settle(exporter)
    for entry in (*manifest(exporter).bases, *manifest(exporter).deltas):
        read_export(tmp_path / "x", entry, exporter._model)
    assert runner.status.rebases == 2
    exporter.close()


@pytest.mark.parametrize("harm", ["manifest", "missing", "short"])
def test_a_damaged_directory_is_written_anew(history, tmp_path, harm):
    learn(history, 1.0, 2.0)
    exporter = make_exporter(history.log, tmp_path / "x")
    ExportRunner(history.log, exporter).catch_up()
    delta = tmp_path / "x" / manifest(exporter).deltas[0].name
    exporter.close()
    match harm:
        case "manifest":
            (tmp_path / "x/manifest.json").write_bytes(b"{")
        case "missing":
            delta.unlink()
        case "short":
            delta.write_bytes(delta.read_bytes()[:-1])
    again = make_exporter(history.log, tmp_path / "x")
    assert again.position() is None
    assert ExportRunner(history.log, again).catch_up() == 2
    for entry in (*manifest(again).bases, *manifest(again).deltas):
        read_export(tmp_path / "x", entry, again._model)
    again.close()


def test_a_directory_belongs_to_one_model_and_one_process(history, tmp_path):
    exporter = make_exporter(history.log, tmp_path / "x")
    with pytest.raises(ExportError, match="another process exports into"):
        make_exporter(history.log, tmp_path / "x")
    exporter.close()
    other = History(tmp_path / "other", {**JOB, "name": "other"})
    with pytest.raises(ExportError, match=r"holds the export of model 'small'.*set another path"):
        make_exporter(other.log, tmp_path / "x")
    make_exporter(history.log, tmp_path / "x").close()


def test_a_takeover_leaves_the_lock_of_another_models_export_alone(history, tmp_path):
    exporter = make_exporter(history.log, tmp_path / "x")
    runner = ExportRunner(history.log, exporter)
    runner.catch_up()
    other = History(tmp_path / "other", {**JOB, "name": "other"})
    with pytest.raises(ExportError, match="holds the export of model 'small'"):
        DeltaExporter(DeltaSettings(path=str(tmp_path / "x")), other.log.model, takeover=True)
    learn(history, 1.0)
    assert runner.catch_up() == history.log.head()
    exporter.close()


def test_a_job_that_cannot_be_served_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ExportError, match="cannot be exported"):
        DeltaExporter(DeltaSettings(path=str(tmp_path / "x")), ModelDescription("m", "1", 0, {"seed": 1}))
    assert not (tmp_path / "x").exists()


def test_a_closed_exporter_exports_nothing(history, tmp_path):
    learn(history, 1.0)
    exporter = make_exporter(history.log, tmp_path / "x")
    exporter.close()
    with pytest.raises(ExportError, match="closed"):
        exporter.rebase(history.log.read(0))


class FullDisk(Files):
    """A disk without room while `full`."""

    full = False

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(descriptor, data)


def test_a_full_disk_holds_the_export_up_and_harms_nothing(history, tmp_path):
    files = FullDisk()
    exporter = DeltaExporter(DeltaSettings(path=str(tmp_path / "x")), history.log.model, files)
    runner = ExportRunner(history.log, exporter)
    runner.catch_up()
    before = manifest(exporter)
    learn(history, 1.0)
    files.full = True
    for _ in range(2):
        with pytest.raises(ExportError, match=r"No space left on device; training goes on"):
            runner.catch_up()
    assert "No space left" in runner.status.last_error
    assert (manifest(exporter), list((tmp_path / "x/tmp").iterdir())) == (before, [])
    files.full = False
    assert runner.catch_up() == 1
    assert runner.status.last_error is None
    exporter.close()


def test_a_fold_that_fails_holds_no_delta_up(history, tmp_path, caplog):
    files = FullDisk()
    settings = DeltaSettings(path=str(tmp_path / "x"), base_every_epochs=2)
    exporter = DeltaExporter(settings, history.log.model, files)
    runner = ExportRunner(history.log, exporter)
    learn(history, 1.0, 2.0)
    rounds = iter([False, False, True])
    runner.catch_up(lambda: next(rounds))
    real = exporter._folder.submit
    exporter._folder.submit = lambda *args: (setattr(files, "full", True), real(*args))[1]
    runner.catch_up()
    settle(exporter)
    files.full = False
    exporter._folder.submit = real
    learn(history, 3.0)
    assert runner.catch_up() == 3
    assert "tried again at epoch 5" in caplog.text
    learn(history, 4.0, 5.0)
    runner.catch_up()
    settle(exporter)
    learn(history, 6.0)
    runner.catch_up()
    assert [base.epoch for base in manifest(exporter).bases] == [0, 5]
    exporter.close()


@pytest.mark.parametrize(
    ("dtype", "stored", "columns"),
    [
        ("float32", "float32", {"weights"}),
        ("bfloat16", "uint16", {"weights"}),
        ("int8", "int8", {"weights", "scales"}),
    ],
)
def test_weights_are_as_short_as_asked_in_deltas_and_bases_and_followers_hold_them(
    history: History, tmp_path: Path, dtype: str, stored: str, columns: set[str]
) -> None:
    exporter = make_exporter(history.log, tmp_path / "export", dtype=dtype, base_every_epochs=2)
    runner = ExportRunner(history.log, exporter)
    follower = Follower(tmp_path / "export")
    for weight in (0.5, -1.7, 3.1, 0.123, 2.25, 1e-3):
        learn(history, weight)
        runner.catch_up()
        settle(exporter)
        follower.poll()
        head = history.oracle[-1]
        for table, rows in held(follower).items():
            assert rows.keys() == head[table].keys()
            # Of dim 1, so that the largest weight of a row is the weight.
            assert all(abs(rows[id] - w) <= abs(w) / 250 for id, w in head[table].items())
            assert dtype != "float32" or rows == pytest.approx(head[table])
    assert len(manifest(exporter).bases) == 2
    for name in manifest(exporter).names:
        with safe_open(exporter._directory.path / name, "numpy") as file:
            names = list(file.keys())
            found = {key.rpartition("/")[2]: key for key in names if key.startswith("tables/users/")}
            assert found.keys() - {"ids", "tombstones"} == columns
            assert file.get_tensor(found["weights"]).dtype == stored
    exporter.close()


def test_a_base_has_the_new_dtype_where_that_was_changed_and_old_deltas_are_folded_into_it(
    history: History, tmp_path: Path
) -> None:
    for dtype in ("float32", "int8", "bfloat16", "float32"):
        exporter = make_exporter(history.log, tmp_path / "export", dtype=dtype, base_every_epochs=2)
        for weight in (0.5, -1.7, 3.1):
            learn(history, weight)
            ExportRunner(history.log, exporter).catch_up()
            settle(exporter)
        learn(history, 0.25)
        ExportRunner(history.log, exporter).catch_up()
        exporter.close()
    follower = Follower(tmp_path / "export")
    follower.poll()
    for table, rows in held(follower).items():
        head = history.oracle[-1][table]
        assert rows.keys() == head.keys()
        assert all(abs(rows[id] - w) <= abs(w) / 100 for id, w in head.items())


def test_a_compressed_delta_is_a_zstd_frame_around_the_same_file_and_bases_are_mapped_as_ever(
    history: History, tmp_path: Path
) -> None:
    for epoch in range(1, 8):
        history.append({"users": dict.fromkeys(range(3000), float(epoch))})
    entries = {}
    for compression in ("none", "zstd"):
        exporter = make_exporter(
            history.log, tmp_path / compression, compression=compression, base_every_epochs=5
        )
        runner = ExportRunner(history.log, exporter)
        runner.catch_up()
        settle(exporter)
        history.append({"users": {1: None}})
        runner.catch_up()
        entries[compression] = {e.epoch: e for e in (*manifest(exporter).bases, *manifest(exporter).deltas)}
        follower = Follower(tmp_path / compression, piece_samples=1)
        follower.poll()
        assert held(follower) == history.oracle[-1]
        exporter.close()
    now = Manifest.read(tmp_path / "zstd" / "manifest.json")
    assert len(now.bases) == 2 and all(base.name.endswith(".safetensors") for base in now.bases)
    for packed in now.deltas:
        assert packed.name.endswith(".safetensors.zst")
        path = tmp_path / "zstd" / packed.name
        assert packed.size_bytes == path.stat().st_size < packed.unpacked_bytes
        if (plain := entries["none"].get(packed.epoch)) is not None and plain.previous:
            content = pa.decompress(path.read_bytes(), packed.unpacked_bytes, "zstd", asbytes=True)
            assert content == (tmp_path / "none" / plain.name).read_bytes()
            assert plain.digest == packed.digest
    versions = [
        json.loads((tmp_path / name / "manifest.json").read_bytes())["format_version"] for name in entries
    ]
    assert versions == [1, 2], "a follower that knows nothing of compression refuses, and says why"


def test_a_long_chain_of_compressed_deltas_is_unpacked_on_the_disk_and_leaves_nothing_there(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path | None] = []

    def noted(path, size, folder):
        folders.append(folder)
        return unpacked(path, size, folder)

    monkeypatch.setattr("streamtrain.serving.files.unpacked", noted)
    exporter = make_exporter(history.log, tmp_path / "x", compression="zstd", base_every_epochs=4)
    runner = ExportRunner(history.log, exporter)
    runner.catch_up()
    learn(history, 1.0, 2.0, 3.0, 4.0)
    runner.catch_up()
    settle(exporter)
    learn(history, 5.0)
    runner.catch_up()
    assert contents(exporter, manifest(exporter).bases[-1].name) == history.oracle[4]
    assert folders == [tmp_path / "x" / "tmp"] * 4
    assert not list((tmp_path / "x" / "tmp").iterdir())
    exporter.close()


def test_compressed_deltas_are_folded_by_the_room_that_they_take_unpacked(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_fold, "UNPACKED_BYTES_MAX", 3000)
    opened: list[int] = []
    step = delta_fold._fold_step

    def counting(directory, chain, *rest):
        opened.append(len(chain) - 1)
        return step(directory, chain, *rest)

    monkeypatch.setattr(delta_fold, "_fold_step", counting)
    exporter = make_exporter(history.log, tmp_path / "x", compression="zstd", base_every_epochs=5)
    runner = ExportRunner(history.log, exporter)
    runner.catch_up()
    learn(history, 1.0, 2.0, 3.0, 4.0, 5.0)
    runner.catch_up()
    sizes = [delta.unpacked_bytes for delta in manifest(exporter).deltas]
    settle(exporter)
    learn(history, 6.0)
    runner.catch_up()
    assert max(sizes) < 3000 < sum(sizes)
    assert sum(opened) == 5 and len(opened) > 1 and max(opened) * min(sizes) <= 3000
    assert contents(exporter, manifest(exporter).bases[-1].name) == history.oracle[5]
    exporter.close()


def test_a_disk_that_is_full_while_a_delta_is_unpacked_is_no_damage(history: History, tmp_path: Path) -> None:
    exporter = make_exporter(history.log, tmp_path / "x", compression="zstd", base_every_epochs=2)
    runner = ExportRunner(history.log, exporter)
    runner.catch_up()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    learn(history, 1.0)
    runner.catch_up()
    (delta,) = manifest(exporter).deltas
    model = exporter._model
    # What is over the limit is written in part, without an error, as on a disk that fills up.
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (delta.unpacked_bytes - 100, limits[1]))
    try:
        with pytest.raises(OSError) as told:
            read_export(tmp_path / "x", delta, model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert told.value.errno == errno.EFBIG
    assert read_export(tmp_path / "x", delta, model, tmp_path).entry == delta
    exporter.close()
