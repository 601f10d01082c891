"""Which changed settings a running daemon takes over, and which wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamtrain.reloading import RELOADABLE, reload_of
from tests.fakes import SCHEMA, job


def test_every_setting_that_can_be_reloaded_is_one_and_is_taken(tmp_path: Path) -> None:
    before = job(tmp_path)
    after = job(
        tmp_path,
        logging={"level": "debug", "format": "json", "repeats_max": 3},
        log={
            "path": str(tmp_path / "model"),
            "epoch_interval_s": 0.05,
            "base_every_epochs": 7,
            "base_share": 0.25,
            "keep_epochs": 70,
            "reader_lease_s": 30,
            "hold_epochs_max": 99,
        },
        training={"batch_size": 8, "linger_ms": 1, "bad_samples": {"share_max": 0.5, "window": 9}},
    )
    reload = reload_of(before, after)
    assert set(reload.taken) == RELOADABLE and not reload.restart and not reload.refused
    assert reload.job.describe() == after.describe()


@pytest.mark.parametrize(
    ("sections", "restart", "refused"),
    [
        ({}, (), ()),
        ({"name": "other"}, ("name",), ()),
        ({"training": {"batch_size": 16, "linger_ms": 1}}, ("training.batch_size",), ()),
        ({"http": {"enabled": False, "port": 1}}, ("http.port",), ()),
        ({"seed": 4}, (), ("seed",)),
        ({"schema": SCHEMA | {"slots": {"user": {}, "item": {}}}}, (), ("schema.slots.item",)),
        ({"tables": {"main": {"dim": 1, "rows_max": 99}}}, ("tables.main.rows_max",), ()),
    ],
)
def test_what_cannot_be_taken_over_waits_or_will_be_refused(
    sections: dict[str, Any], restart: tuple[str, ...], refused: tuple[str, ...], tmp_path: Path
) -> None:
    before = job(tmp_path)
    reload = reload_of(before, job(tmp_path, **sections))
    assert (reload.taken, reload.restart) == ((), restart)
    assert {path.split(":")[0] for path in reload.refused} == set(refused)
    assert reload.job.describe() == before.describe()


def test_another_log_is_another_model_and_decides_nothing_here(tmp_path: Path) -> None:
    after = job(tmp_path, seed=4, log={"path": str(tmp_path / "other"), "epoch_interval_s": 0.05})
    reload = reload_of(job(tmp_path), after)
    assert reload.restart == ("log.path", "seed") and not reload.refused
    assert reload.job.log.path == str(tmp_path / "model")
