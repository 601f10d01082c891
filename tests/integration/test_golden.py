"""What earlier versions wrote opens in this one, and is gone on from as they would have: logs, stores, exports."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain.log.epoch_log import EpochLog
from streamtrain.serving import Follower
from tests.daemon import streamtrain
from tests.golden.world import FOLDER, KEPT, LATER, REQUEST, learn, rows, samples, unpack
from tests.servers import RedisServer

VERSIONS = sorted(path.parent for path in FOLDER.glob("*/job.toml"))


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def version(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy to work in; the kept one stays as it is."""
    found: Path = request.param
    return unpack(found, tmp_path / "golden")


@pytest.fixture(params=["lmdb", pytest.param("redis", marks=pytest.mark.redis)])
def store(request: pytest.FixtureRequest, version: Path, tmp_path: Path) -> str:
    """The address of the kept store."""
    if request.param == "lmdb":
        return f"lmdb://{version}/lmdb"
    start: Callable[..., RedisServer] = request.getfixturevalue("start_redis")
    (tmp_path / "redis").mkdir()
    shutil.copyfile(version / "redis.rdb", tmp_path / "redis" / "dump.rdb")
    return start(folder=tmp_path / "redis").url


def expected(version: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((version / "expected.json").read_text())
    return found


def test_there_are_kept_files_and_they_hold_what_they_are_there_for() -> None:
    assert VERSIONS
    for version in VERSIONS:
        held = json.loads(gzip.decompress((version / "expected.json.gz").read_bytes()))
        assert all(held["rows"].values()) and held["rows"] != held["rows_later"]
        # Rows of the table that expires have expired by the end.
        assert held["rows"]["tiered"].keys() - held["rows_later"]["tiered"].keys()


def test_the_log_of_an_earlier_version_holds_its_rows_bit_for_bit(version: Path) -> None:
    verified = streamtrain("verify", version / "model")
    assert verified.returncode == 0, verified.stdout
    assert rows(version / "model") == expected(version)["rows"]


def test_a_model_of_an_earlier_version_goes_on_from_its_log_store_and_export(
    version: Path, store: str
) -> None:
    said = expected(version)
    with Follower(version / "exports") as follower:
        follower.wait_for(epoch=0, timeout_s=60)
        np.testing.assert_allclose(follower.predict(REQUEST), said["scores"], atol=1e-6)
        head = EpochLog.open(version / "model").head()
        assert head is not None and follower.wait_for(epoch=head, timeout_s=60)

        output = learn(version, samples(KEPT, KEPT + LATER), store)
        log = EpochLog.open(version / "model")
        newest = log.head()
        assert newest is not None and newest > head
        assert log.describe(newest).samples_total == KEPT + LATER
        follower.wait_for(epoch=newest, timeout_s=60)
        # Nothing began anew: the store had all rows, and the follower went on by deltas.
        for begun in ("is filled again from the log", "repairing the store", "exporting from the base"):
            assert begun not in output, output
        assert follower.status.bases_loaded == 1

    # Bits may differ by processor and library, as `replay` says; what is learned may not.
    later, there = said["rows_later"], rows(version / "model")
    assert {name: held.keys() for name, held in there.items()} == {
        n: held.keys() for n, held in later.items()
    }
    for name, held in there.items():
        for id_, (weights, slots, used) in held.items():
            assert used == later[name][id_][2], (name, id_)
            np.testing.assert_allclose(weights, later[name][id_][0], atol=1e-4, err_msg=f"{name} {id_}")
            np.testing.assert_allclose(slots, later[name][id_][1], atol=1e-4, err_msg=f"{name} {id_}")
    assert streamtrain("verify", version / "model").returncode == 0
