"""Followers that are registered: the exporter keeps the deltas that they have not applied yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamtrain.log.readers import Readers
from streamtrain.serving import Follower
from streamtrain.serving.manifest import Manifest
from tests.unit.serving.test_follower import Exported


def with_bases(path: Path, upto: int) -> Exported:
    """An export that keeps one base, and makes one of every second epoch."""
    made = Exported(path, base_every_epochs=2, keep_bases=1)
    go_on(made, upto)
    return made


def go_on(made: Exported, upto: int) -> None:
    while len(made.history.oracle) <= upto:
        made.learn(1.0)
        if made.exporter._folding is not None:
            made.wait_for_base()


@pytest.mark.parametrize(("name", "loaded"), [("a", 1), (None, 2)])
def test_a_registered_follower_goes_on_by_deltas_and_another_loads_a_base(
    tmp_path: Path, name: str | None, loaded: int
) -> None:
    made = with_bases(tmp_path, 2)
    follower = Follower(made.path, register=name)
    follower.poll()
    go_on(made, 11)
    assert len(Manifest.read(made.path / "manifest.json").bases) <= 2
    follower.poll()
    assert follower.version is not None and follower.version.epoch == 11
    assert follower.status.bases_loaded == loaded and follower.status.last_error is None
    follower.stop()
    assert Readers(made.path).found() == []
    go_on(made, 15)
    assert len(Manifest.read(made.path / "manifest.json").bases) == 1
    made.close()


def test_a_follower_that_is_started_again_is_registered_before_anything_is_new(tmp_path: Path) -> None:
    made = with_bases(tmp_path, 2)
    follower = Follower(made.path, register="a")
    for _ in range(2):
        with follower:
            assert [(reader.name, reader.epoch) for reader in Readers(made.path).found()] == [("a", 2)]
        assert Readers(made.path).found() == []
    made.close()


def test_a_follower_without_leave_to_write_follows_as_without_a_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = with_bases(tmp_path, 2)
    (made.path / "readers").rmdir()
    (made.path / "readers").write_text("not a directory, for any user")
    follower = Follower(made.path, register="a")
    follower.poll()
    follower.poll()
    assert follower.version is not None and follower.version.epoch == 2
    assert caplog.text.count("cannot register a reader in") == 1
    made.close()
